// Chooses whose kernels run: the fastest instruction set of this CPU, or, for tests,
// MMIF_ISA=baseline|avx2|avx512|avx512bf16.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <string>

#include "../check.h"

namespace mmif {

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// All of what this CPU has.
inline Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

// On Intel's CPUs the dot product of bfloat16 takes longer than the same products in float32: on a Xeon with
// AMX the blocks in bfloat16 took about 1.3 times as long with it, and longer than PyTorch's, which use AMX.
inline Isa fastest_isa() {
  const Isa best = best_isa();
#if defined(__x86_64__)
  if (best == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512;
#endif
  return best;
}

inline Isa chosen_isa() {
  const char* wish = std::getenv("MMIF_ISA");
  const Isa best = best_isa();
  if (wish == nullptr || *wish == '\0') return fastest_isa();
  const std::string name = wish;
  const char* const names[] = {"baseline", "avx2", "avx512", "avx512bf16"};
  const auto* const found = std::find(std::begin(names), std::end(names), name);
  const Isa isa = static_cast<Isa>(found - std::begin(names));
  MMIF_CHECK("kernels", "MMIF_ISA", name, "baseline, avx2, avx512, avx512bf16, as far as this CPU has it",
             found != std::end(names) && isa <= best);
  return isa;
}

inline Isa isa() {
  static const Isa once = chosen_isa();
  return once;
}

}  // namespace mmif

// MMIF_DISPATCH(window_attention_fwd, params, chunk) calls the function of that name in the chosen namespace.
#if defined(__x86_64__)
#define MMIF_DISPATCH(FUNCTION, ...)                                                     \
  (::mmif::isa() == ::mmif::Isa::kAvx512Bf16 ? ::mmif::avx512bf16::FUNCTION(__VA_ARGS__) \
   : ::mmif::isa() == ::mmif::Isa::kAvx512   ? ::mmif::avx512::FUNCTION(__VA_ARGS__)     \
   : ::mmif::isa() == ::mmif::Isa::kAvx2     ? ::mmif::avx2::FUNCTION(__VA_ARGS__)       \
                                             : ::mmif::baseline::FUNCTION(__VA_ARGS__))
#else
#define MMIF_DISPATCH(FUNCTION, ...) ::mmif::baseline::FUNCTION(__VA_ARGS__)
#endif

// Declares a kernel entry in each instruction set's namespace.
#define MMIF_DECLARE(FUNCTION, ...) \
  namespace mmif::baseline {        \
  void FUNCTION(__VA_ARGS__);       \
  }                                 \
  namespace mmif::avx2 {            \
  void FUNCTION(__VA_ARGS__);       \
  }                                 \
  namespace mmif::avx512 {          \
  void FUNCTION(__VA_ARGS__);       \
  }                                 \
  namespace mmif::avx512bf16 {      \
  void FUNCTION(__VA_ARGS__);       \
  }
