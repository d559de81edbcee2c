#include "moe/base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>

#include "moe/base/check.h"

#ifdef MOE_THREADS_JTHREAD
#include <barrier>
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace moe {

namespace {

constexpr int kMaxThreads = 1024;

int default_threads() {
  if (const char* text = std::getenv("MOEKIT_NUM_THREADS")) {
    const int threads = std::atoi(text);
    if (threads >= 1 && threads <= kMaxThreads) return threads;
  }
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    return std::clamp(CPU_COUNT(&allowed), 1, kMaxThreads);
  }
  return 1;
}

std::atomic<int> g_threads{0};
std::atomic<bool> g_forked{false};
thread_local int t_most = 0;

// libgomp's threads do not survive a fork and its next region would wait for them for ever.
[[maybe_unused]] const int g_at_fork =
    pthread_atfork(nullptr, nullptr, [] { g_forked.store(true, std::memory_order_relaxed); });

#ifdef MOE_THREADS_JTHREAD
thread_local std::barrier<>* t_barrier = nullptr;
#endif

}  // namespace

int num_threads() {
  if (g_forked.load(std::memory_order_relaxed)) return 1;
  int threads = g_threads.load(std::memory_order_relaxed);
  if (threads == 0) {
    threads = default_threads();
    g_threads.store(threads, std::memory_order_relaxed);
  }
  return t_most > 0 ? std::min(threads, t_most) : threads;
}

ThreadLimit::ThreadLimit(int most) : before_(t_most) {
  if (most > 0) t_most = most;
}

ThreadLimit::~ThreadLimit() { t_most = before_; }

void set_num_threads(int threads) {
  MOE_CHECK(threads >= 1 && threads <= kMaxThreads, "[set_num_threads] threads is ", threads,
            "; 1 to ", kMaxThreads, " are possible");
  g_threads.store(threads, std::memory_order_relaxed);
}

void parallel(int threads, FunctionRef<void(Team&)> body) noexcept {
  threads = std::min(threads, num_threads());
  if (threads <= 1) {
    Team alone{0, 1};
    body(alone);
    return;
  }
#ifdef MOE_THREADS_JTHREAD
  std::barrier<> gate(threads);
  const auto run = [&](int index) {
    t_barrier = &gate;
    Team team{index, threads};
    body(team);
    t_barrier = nullptr;
  };
  std::vector<std::jthread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(run, i);
  run(0);
#else
  // Always all threads: libgomp ends those that a smaller team leaves out, and the next larger one
  // creates them again, tens of microseconds for each. Who is left out keeps the members company at
  // their barriers, of which only the members know the number.
  std::atomic<int> last{0};
#pragma omp parallel num_threads(num_threads())
  {
    const int index = omp_get_thread_num(), all = omp_get_num_threads();
    Team team{index, std::min(threads, all)};
    if (index < team.size) {
      body(team);
      if (team.size < all) {
        if (index == 0) last.store(team.barriers + 1);
        team.barrier();
      }
    } else {
      do team.barrier();
      while (last.load() != team.barriers);
    }
  }
#endif
}

void Team::barrier() {
  if (size == 1) return;
#ifdef MOE_THREADS_JTHREAD
  t_barrier->arrive_and_wait();
#else
  ++barriers;
#pragma omp barrier
#endif
}

RunQueue::Run RunQueue::take() {
  const auto end_of = [&](int64_t begin) {
    return begin + std::max<int64_t>(1, part(count_ - begin));
  };
  return take(end_of);
}

RunQueue::Run RunQueue::take(FunctionRef<int64_t(int64_t)> end_of) {
  int64_t begin = next(), end = 0;
  do {
    if (begin >= count_) return {count_, count_};
    end = end_of(begin);
  } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
  return {begin, end};
}

void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) noexcept {
  if (count <= 0) return;
  const int64_t pieces = (count + grain - 1) / grain;
  TaskQueue tasks;
  const auto work = [&](Team&) {
    for (int64_t i = tasks.take(); i < pieces; i = tasks.take()) {
      body(i * grain, std::min(count, (i + 1) * grain));
    }
  };
  parallel(static_cast<int>(std::min<int64_t>(pieces, num_threads())), work);
}

}  // namespace moe
