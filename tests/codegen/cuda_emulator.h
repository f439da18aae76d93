// CUDA C on a CPU: compiles the source that tvmflow emits as C++ and runs the threads of a block in lock step between barriers.
//
// Threads are fibers (ucontext). A barrier that only some threads reach, and an access outside of a buffer that hits a guard page,
// are reported as errors. Threads run forwards or backwards between two barriers: a result that depends on it has a race.
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define CUDART_INF_F INFINITY
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

struct Index { int x; };
static Index threadIdx, blockIdx;
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline float max(float a, float b) { return std::fmax(a, b); }
static inline float min(float a, float b) { return std::fmin(a, b); }

static inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += int(int8_t(a >> i)) * int(int8_t(b >> i));
  return c;
}

namespace emulator {
enum { OK = 0, DIVERGED = 1, OUTSIDE = 2 };
enum { READY, WAITING, DONE };
constexpr size_t STACK = 256 << 10;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> stacks, states;
static sigjmp_buf escape;
static void (*body)(void **);
static void **arguments;

static void entry() {
  body(arguments);
  states[threadIdx.x] = DONE;
}

static void outside(int) { siglongjmp(escape, 1); }

static int run_block(int threads, bool backwards) {
  for (int i = 0; i < threads; ++i) {
    getcontext(&fibers[i]);
    fibers[i].uc_stack.ss_sp = stacks.data() + i * STACK;
    fibers[i].uc_stack.ss_size = STACK;
    fibers[i].uc_link = &scheduler;
    makecontext(&fibers[i], entry, 0);
    states[i] = READY;
  }
  for (;;) {
    for (int n = 0; n < threads; ++n) {
      int i = backwards ? threads - 1 - n : n;
      if (states[i] == DONE) continue;
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i]);
    }
    int done = std::count(states.begin(), states.begin() + threads, DONE);
    if (done == threads) return OK;
    if (done) return DIVERGED;
  }
}

static int launch(void (*kernel)(void **), void **args, int blocks, int threads, int backwards) {
  body = kernel, arguments = args;
  fibers.resize(threads), states.resize(threads), stacks.resize(threads * STACK);
  struct sigaction action = {}, segv, bus;
  action.sa_handler = outside;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &action, &segv), sigaction(SIGBUS, &action, &bus);
  int result = OK;
  if (sigsetjmp(escape, 1)) result = OUTSIDE;
  else
    for (int n = 0; n < blocks && result == OK; ++n) {
      blockIdx.x = backwards ? blocks - 1 - n : n;
      result = run_block(threads, backwards);
    }
  sigaction(SIGSEGV, &segv, nullptr), sigaction(SIGBUS, &bus, nullptr);
  return result;
}
}  // namespace emulator

static void __syncthreads() {
  int me = threadIdx.x;
  emulator::states[me] = emulator::WAITING;
  swapcontext(&emulator::fibers[me], &emulator::scheduler);
}
