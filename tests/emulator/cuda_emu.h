// Runs the source of a CUDA kernel on the CPU, so that kernels are tested where there is no GPU.
//
// Every CUDA thread of a block is a fiber (its own stack, switched by hand); blocks run one after another. A
// fiber runs until it reaches a barrier or a warp collective, so between two barriers threads run in an order
// that the seed chooses: even seeds switch warps at every stop, odd seeds let one warp run ahead to the next
// __syncthreads before another begins, which shows what only another warp could have written. All that is
// shared is filled with NaN (0xFF bytes) when a block begins. What is reported, with a line on stderr and
// exit status 86: a barrier that some threads left out or reached elsewhere, a warp mask that leaves out its
// caller, names an exited lane or a lane the block does not have, lanes of one mask at different places,
// deadlock. Accesses out of bounds are AddressSanitizer's work; shared memory lies on the heap in its exact
// size for it.
//
// Not covered: races within a warp on real hardware, timing, the rounding of tensor cores, textures, atomics.
// x86-64, g++ -std=c++17. Kernels reach this through csrc/cuda/common.cuh, with -DMMIF_EMULATOR.
#pragma once
#if !defined(__x86_64__)
#error "the fiber switch is written for x86-64"
#endif
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "cuda_emu_types.h"

namespace emu {

inline constexpr unsigned kWarp = 32;
inline constexpr size_t kPayload = 64;  // bytes that a lane can hand to its warp at once
inline constexpr int kFault = 86;       // exit status of a detected error
#if defined(__SANITIZE_ADDRESS__)
inline constexpr size_t kStack = 256 << 10;
#else
inline constexpr size_t kStack = 64 << 10;
#endif

enum class Wait { kNone, kBlock, kWarp, kDone };

struct Thread {
  std::unique_ptr<char[]> stack;
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  dim3 index;
  unsigned number = 0;  // within the block
  Wait wait = Wait::kNone;
  int line = 0;       // of the barrier or collective it waits at
  unsigned mask = 0;  // of the warp collective
  unsigned turn = 0;  // collectives so far: payloads of two in a row lie apart
  struct Copy {
    void* to;
    const void* from;
    size_t bytes, zeros;
  };
  std::vector<Copy> copies;  // asynchronous ones, not yet waited for
};

struct Shared {
  const void* site;
  std::unique_ptr<char, void (*)(void*)> memory;
  size_t bytes;
};

struct State {
  unsigned seed = 0;
  std::mt19937 random;
  std::vector<Thread> threads;
  Thread* current = nullptr;
  void (*run)(const void*) = nullptr;  // the kernel's body
  const void* body = nullptr;
  void* scheduler_stack_pointer = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  dim3 block_index, block_size, grid_size;
  unsigned count = 0, done = 0;  // threads of the block, and those that have returned
  std::vector<Shared> shared;    // static: one per declaration
  Shared dynamic{nullptr, {nullptr, std::free}, 0};
  char payload[2][1024 / kWarp][kWarp][kPayload];
};
inline State state;

[[noreturn]] inline void fail(const char* what) {
  const dim3 b = state.block_index;
  std::fprintf(stderr, "cuda_emu: %s (block %u,%u,%u", what, b.x, b.y, b.z);
  if (state.current) std::fprintf(stderr, ", thread %u, line %d", state.current->number, state.current->line);
  std::fprintf(stderr, ")\n");
  std::fflush(nullptr);
  std::_Exit(kFault);
}

// ---- Fibers -------------------------------------------------------------------------------------

// Saves what a call must preserve, changes stacks, restores. Arguments: rdi, rsi.
__attribute__((naked, noinline)) inline void switch_stack(void** /*save*/, void* /*to*/) {
  asm("push %rbp\n\tpush %rbx\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\t"
      "mov %rsp, (%rdi)\n\tmov %rsi, %rsp\n\t"
      "pop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbx\n\tpop %rbp\n\tret");
}

inline void to_scheduler() {
  Thread* me = state.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(me->wait == Wait::kDone ? nullptr : &me->fake_stack, state.scheduler_stack,
                                 state.scheduler_stack_bytes);
#endif
  switch_stack(&me->stack_pointer, state.scheduler_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me->fake_stack, nullptr, nullptr);
#endif
}

// Where a fiber begins; it never returns.
inline void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &state.scheduler_stack, &state.scheduler_stack_bytes);
#endif
  state.run(state.body);
  state.current->line = 0;
  if (!state.current->copies.empty()) fail("returned with asynchronous copies not waited for");
  state.current->wait = Wait::kDone;
  to_scheduler();
  std::abort();
}

inline void to_thread(Thread& thread) {
  state.current = &thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state.scheduler_fake_stack, thread.stack.get(), kStack);
#endif
  switch_stack(&state.scheduler_stack_pointer, thread.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state.scheduler_fake_stack, nullptr, nullptr);
#endif
  if (thread.wait == Wait::kDone) ++state.done;
  state.current = nullptr;
}

inline void prepare(Thread& thread, unsigned number) {
  const dim3 size = state.block_size;
  if (!thread.stack) thread.stack.reset(new char[kStack]);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(thread.stack.get(), kStack);  // what the fiber before left, never to return
#endif
  thread.number = number;
  thread.index = dim3(number % size.x, number / size.x % size.y, number / (size.x * size.y));
  thread.wait = Wait::kNone;
  thread.turn = 0;
  thread.fake_stack = nullptr;
  thread.copies.clear();
  // As if switch_stack had been called from thread_main's first line: six registers, then the return address;
  // after `ret` the stack pointer is 8 off a multiple of 16, as the calling convention wants at entry.
  const uintptr_t top = (reinterpret_cast<uintptr_t>(thread.stack.get()) + kStack) & ~uintptr_t{15};
  void** stack = reinterpret_cast<void**>(top) - 8;
  std::fill(stack, stack + 8, nullptr);
  stack[6] = reinterpret_cast<void*>(&thread_main);
  thread.stack_pointer = stack;
}

// ---- Scheduler ----------------------------------------------------------------------------------

// Frees a warp's lanes whose mask is complete: true if any were.
inline bool release_collectives(unsigned warp) {
  bool released = false;
  Thread* lanes = &state.threads[warp * kWarp];
  const unsigned present = std::min(kWarp, state.count - warp * kWarp);
  for (unsigned i = 0; i < present; ++i) {
    if (lanes[i].wait != Wait::kWarp) continue;
    const unsigned mask = lanes[i].mask;
    bool complete = true;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (!(mask >> lane & 1)) continue;
      state.current = &lanes[i];
      if (lane >= present) fail("a warp mask names a lane that the block does not have");
      if (lanes[lane].wait == Wait::kDone) fail("a warp mask names a lane that has returned");
      if (lanes[lane].wait == Wait::kWarp && (lanes[lane].mask != mask || lanes[lane].line != lanes[i].line))
        fail("lanes of one mask wait at different collectives or with different masks");
      complete &= lanes[lane].wait == Wait::kWarp;
      state.current = nullptr;
    }
    for (unsigned lane = 0; complete && lane < kWarp; ++lane)
      if (mask >> lane & 1) lanes[lane].wait = Wait::kNone;
    released |= complete;
  }
  return released;
}

// Runs every thread of a warp that can run; with `ahead`, until all of them wait for other warps.
inline bool run_warp(unsigned warp, bool ahead) {
  unsigned order[kWarp];
  const unsigned present = std::min(kWarp, state.count - warp * kWarp);
  bool progress = false, again = true;
  while (again) {
    again = false;
    for (unsigned i = 0; i < present; ++i) order[i] = warp * kWarp + i;
    if (state.seed) std::shuffle(order, order + present, state.random);
    for (unsigned i = 0; i < present; ++i) {
      if (state.threads[order[i]].wait != Wait::kNone) continue;
      to_thread(state.threads[order[i]]);
      again = true;
    }
    again |= release_collectives(warp);
    progress |= again;
    if (!ahead) break;
  }
  return progress;
}

// Frees the block's threads if all of them have reached one __syncthreads.
inline bool release_barrier() {
  const Thread* first = nullptr;
  unsigned waiting = 0;
  for (unsigned i = 0; i < state.count; ++i) {
    Thread& thread = state.threads[i];
    if (thread.wait != Wait::kBlock) continue;
    ++waiting;
    if (first == nullptr) first = &thread;
    state.current = &thread;
    if (thread.line != first->line) fail("threads wait at different __syncthreads");
    if (state.done) fail("__syncthreads is not reached by all threads: some have returned");
    state.current = nullptr;
  }
  if (waiting == 0 || waiting < state.count) return false;
  for (unsigned i = 0; i < state.count; ++i) state.threads[i].wait = Wait::kNone;
  return true;
}

inline void run_block() {
  for (Shared& shared : state.shared) std::memset(shared.memory.get(), 0xFF, shared.bytes);
  if (state.dynamic.bytes) std::memset(state.dynamic.memory.get(), 0xFF, state.dynamic.bytes);
  state.done = 0;
  for (unsigned i = 0; i < state.count; ++i) prepare(state.threads[i], i);
  std::vector<unsigned> warps((state.count + kWarp - 1) / kWarp);
  for (unsigned i = 0; i < warps.size(); ++i) warps[i] = i;
  while (state.done < state.count) {
    if (state.seed) std::shuffle(warps.begin(), warps.end(), state.random);
    bool progress = false;
    for (unsigned warp : warps) progress |= run_warp(warp, state.seed % 2);
    if (!progress) progress = release_barrier();
    if (!progress) {
      for (unsigned i = 0; i < state.count; ++i)
        if (state.threads[i].wait != Wait::kDone) state.current = &state.threads[i];
      fail("deadlock: some threads wait for a __syncthreads, others for a warp collective");
    }
  }
}

inline Shared allocate(const void* site, size_t bytes) {
  void* memory = nullptr;
  if (bytes && posix_memalign(&memory, 128, bytes) != 0) fail("no memory");
  if (bytes) std::memset(memory, 0xFF, bytes);
  return {site, {static_cast<char*>(memory), std::free}, bytes};
}

// The kernel's launch: every block, to the end. Limits as of compute capability 8.0 to 12.0.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_bytes,
                   Arguments... arguments) {
  const uint64_t count = uint64_t{block.x} * block.y * block.z;
  if (count == 0 || count > 1024 || dynamic_bytes > (99 << 10) || grid.x == 0 || grid.x > 0x7fffffffu ||
      grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  state.run = [](const void* it) { (*static_cast<decltype(&body)>(it))(); };
  state.body = &body;
  state.grid_size = grid;
  state.block_size = block;
  state.count = static_cast<unsigned>(count);
  state.random.seed(state.seed);
  if (state.threads.size() < count) state.threads.resize(count);
  state.dynamic = allocate(nullptr, dynamic_bytes);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        state.block_index = dim3(x, y, z);
        run_block();
      }
  state.shared.clear();
  return cudaSuccess;
}

// ---- What device code calls ---------------------------------------------------------------------

// Shared memory of one declaration; `site` tells declarations apart.
template <typename T>
T& static_shared(const void* site) {
  for (Shared& shared : state.shared)
    if (shared.site == site) return *reinterpret_cast<T*>(shared.memory.get());
  state.shared.push_back(allocate(site, sizeof(T)));
  return *reinterpret_cast<T*>(state.shared.back().memory.get());
}

template <typename T>
T& dynamic_shared() {
  if (sizeof(T) > state.dynamic.bytes) fail("dynamic shared memory is smaller than what the kernel uses");
  return *reinterpret_cast<T*>(state.dynamic.memory.get());
}

inline unsigned lane() { return state.current->number % kWarp; }

// Every lane of the mask gives a value and gets those of all lanes; valid until the collective after the
// next.
template <typename T>
const T (&exchange(unsigned mask, const T& value, int line)) [kWarp] {
  static_assert(sizeof(T) <= kPayload && std::is_trivially_copyable<T>::value, "too large to exchange");
  Thread* me = state.current;
  me->line = line;
  if (!(mask >> lane() & 1)) fail("a warp mask leaves out the lane that calls");
  // Lanes side by side, sizeof(T) apart, so that the result is an array.
  char* payload = &state.payload[me->turn++ % 2][me->number / kWarp][0][0];
  std::memcpy(payload + lane() * sizeof(T), &value, sizeof(T));
  me->mask = mask;
  me->wait = Wait::kWarp;
  to_scheduler();
  return *reinterpret_cast<const T(*)[kWarp]>(payload);
}

// `bytes` from `from`, then zeros, to shared memory; nothing is there before wait_copies().
inline void copy_async(void* to, const void* from, size_t bytes, size_t zeros) {
  state.current->copies.push_back({to, from, bytes, zeros});
}

inline void wait_copies() {
  for (const Thread::Copy& copy : state.current->copies) {
    std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
  }
  state.current->copies.clear();
}

}  // namespace emu

#define threadIdx (emu::state.current->index)
#define blockIdx (emu::state.block_index)
#define blockDim (emu::state.block_size)
#define gridDim (emu::state.grid_size)

inline void __syncthreads(int line = __builtin_LINE()) {
  emu::state.current->line = line;
  emu::state.current->wait = emu::Wait::kBlock;
  emu::to_scheduler();
}

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) { emu::exchange(mask, 0, line); }

// Lanes in groups of `width`; a source outside of the group leaves the caller's own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int lane = emu::lane();
  return emu::exchange(mask, value, line)[(lane & -width) | (source & (width - 1))];
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, int line = __builtin_LINE()) {
  const int lane = emu::lane(), source = lane ^ flip;
  return emu::exchange(mask, value, line)[source < (lane & -width) + width ? source : lane];
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
  const int lane = emu::lane(), source = lane + static_cast<int>(by);
  return emu::exchange(mask, value, line)[source < (lane & -width) + width ? source : lane];
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
  const int lane = emu::lane(), source = lane - static_cast<int>(by);
  return emu::exchange(mask, value, line)[source >= (lane & -width) ? source : lane];
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
