// Small kernels, right ones and wrong ones, by name: planted NAME SEED. Right ones print "good"; what the
// emulator says about the wrong ones is for tests/ops/test_emulator.py to check.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "csrc/cuda/mma.cuh"

using namespace mmif;

namespace {

constexpr int kThreads = 96;
using Row = float[kThreads];

// Reverses a row through shared memory; with a fault, wrongly.
enum class Fault { kNone, kBarrier, kIndex, kBounds, kReturned, kDivergent, kDeadlock, kMasks };

__global__ void reverse(float* out, const float* in, Fault fault) {
  MMIF_SHARED(Row, row);
  const int i = threadIdx.x;
  float* shared = row;
  if (fault == Fault::kBounds && i == kThreads - 1) shared[i + 1] = 0;
  shared[i] = in[i];
  if (fault == Fault::kDivergent && i < 7) return;
  if (fault == Fault::kDeadlock && i == 1) __syncwarp();
  if (fault == Fault::kMasks) __syncwarp(i % kWarp < 16 ? ~0u : 0xffff0000u);
  if (fault != Fault::kBarrier) __syncthreads();
  out[i] = shared[fault == Fault::kIndex ? i : kThreads - 1 - i];
  if (fault == Fault::kReturned) {
    if (i % kWarp == 5) return;
    out[i] += __shfl_xor_sync(kAllLanes, 1.f, 1);
  }
}

__global__ void copied(float* out, const float* in, bool wait) {
  MMIF_SHARED(Row, row);
  const int i = threadIdx.x;
  if (i < kThreads / 4) copy_16_bytes(row + 4 * i, in + 4 * i, i != 0);
  if (wait) wait_copies();
  __syncthreads();
  out[i] = row[i];
}

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x % kWarp;
  out[threadIdx.x] = __shfl_sync(kAllLanes, lane, 3) + 100 * __shfl_xor_sync(kAllLanes, lane, 5) +
                     10000 * __shfl_down_sync(kAllLanes, lane, 4) +
                     1000000 * __shfl_up_sync(kAllLanes, lane, 6, 16);
}

// c = a b of 16 x 16 by 16 x 16, with every way to load an operand.
template <typename T>
struct alignas(16) Tiles {
  T a[64][24], at[64][24], b[64][24], bt[64][24];
};

template <typename T>
__global__ void product(float* c, const float* a, const float* b, bool a_transposed, bool b_transposed) {
  MMIF_SHARED(Tiles<T>, tiles);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += kWarp) {
    tiles.a[i / 16][i % 16] = tiles.at[i % 16][i / 16] = from_float<T>(a[i]);
    tiles.b[i / 16][i % 16] = tiles.bt[i % 16][i / 16] = from_float<T>(b[i]);
  }
  __syncwarp();
  unsigned x[4], y[4];
  if (a_transposed) load_a_transposed(x, tiles.at, 0, 0, lane);
  if (!a_transposed) load_a(x, tiles.a, 0, 0, lane);
  if (b_transposed) load_b_transposed(y, tiles.bt, 0, 0, lane);
  if (!b_transposed) load_b(y, tiles.b, 0, 0, lane);
  for (int n = 0; n < 2; ++n) {
    float sum[4] = {};
    multiply_add<T>(sum, x, y[2 * n], y[2 * n + 1]);
    for (int i = 0; i < 4; ++i) c[16 * (lane / 4 + i / 2 * 8) + 8 * n + 2 * (lane % 4) + i % 2] = sum[i];
  }
}

template <typename T>
bool products_are_right() {
  std::mt19937 random(1);
  std::vector<float> a(256), b(256);  // small whole numbers: every sum is exact in any order
  for (float& x : a) x = static_cast<float>(random() % 17) - 8;
  for (float& x : b) x = static_cast<float>(random() % 17) - 8;
  for (int way = 0; way < 4; ++way) {
    std::vector<float> c(256, -1);
    launch(product<T>, 1, kWarp, 0, nullptr, c.data(), a.data(), b.data(), way % 2 == 1, way / 2 == 1);
    for (int i = 0; i < 256; ++i) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[i / 16 * 16 + k] * b[16 * k + i % 16];
      if (c[i] != sum) return false;
    }
  }
  return true;
}

bool shuffles_are_right() {
  std::vector<int> out(64);
  launch(shuffles, 1, 64, 0, nullptr, out.data());
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, down = lane < 28 ? lane + 4 : lane, up = lane % 16 >= 6 ? lane - 6 : lane;
    if (out[i] != 3 + 100 * (lane ^ 5) + 10000 * down + 1000000 * up) return false;
  }
  return true;
}

bool run(const char* name) {
  const char* faults[] = {"none", "barrier", "index", "bounds", "returned", "divergent", "deadlock", "masks"};
  std::vector<float> in(kThreads), out(kThreads, -1);
  for (int i = 0; i < kThreads; ++i) in[i] = 1.f + i;
  for (int i = 0; i < 8; ++i) {
    if (std::strcmp(name, faults[i])) continue;
    launch(reverse, 2, kThreads, 0, nullptr, out.data(), in.data(), static_cast<Fault>(i));
    return std::equal(out.begin(), out.end(), in.rbegin());
  }
  if (!std::strcmp(name, "copy") || !std::strcmp(name, "unwaited")) {
    launch(copied, 2, kThreads, 0, nullptr, out.data(), in.data(), name[0] == 'c');
    std::fill(in.begin(), in.begin() + 4, 0.f);
    return in == out;
  }
  if (!std::strcmp(name, "shuffles")) return shuffles_are_right();
  return products_are_right<__half>() && products_are_right<__nv_bfloat16>();
}

// Every half to float, and floats to both types, for the test to compare with torch's.
void conversions() {
  for (unsigned i = 0; i < 65536; ++i) {
    const float x = __half2float({static_cast<uint16_t>(i)});
    std::fwrite(&x, 4, 1, stdout);
  }
  float x;
  while (std::fread(&x, 4, 1, stdin) == 1) {
    const uint16_t both[2] = {__float2half_rn(x).bits, __float2bfloat16_rn(x).bits};
    std::fwrite(both, 2, 2, stdout);
  }
}

}  // namespace

int main(int, char** arguments) {
  emu::state.seed = static_cast<unsigned>(std::atoi(arguments[2]));
  if (!std::strcmp(arguments[1], "conversions")) {
    conversions();
    return 0;
  }
  std::puts(run(arguments[1]) ? "good" : "wrong");
  return 0;
}
