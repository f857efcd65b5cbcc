// What the programs that run kernels under the emulator share: exact-sized arrays, read from the cases' file.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <vector>

using Bytes = std::vector<char>;

inline void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "emulated run: %s\n", what);
  std::exit(1);
}

inline Bytes read(std::FILE* file, size_t bytes) {
  Bytes data(bytes);
  check(bytes == 0 || std::fread(data.data(), 1, bytes, file) == bytes, "the cases end early");
  return data;
}

// What a kernel is to write: NaN as floats.
inline Bytes nan(size_t bytes) { return Bytes(bytes, static_cast<char>(0xFF)); }

inline void write(std::FILE* file, const Bytes& data) {
  if (!data.empty()) std::fwrite(data.data(), 1, data.size(), file);
}
