#pragma once
// Threads live behind this header: one region, its team, a barrier, and dynamic tasks.

#include <atomic>
#include <cstdint>

namespace moe {

/// Refers to a callable without owning it (std::function would allocate in every call).
template <class Signature>
class FunctionRef;
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F>
  FunctionRef(F& f)  // NOLINT: implicit on purpose, a lambda is passed where it is called
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, Args... args) -> Result {
          return (*static_cast<F*>(object))(args...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

/// The threads of one parallel region, seen from one of them.
struct Team {
  int index;
  int size;
  int barriers = 0;  // that this thread has passed
  /// Every thread of the team has to come here.
  void barrier();
};

/// Runs `body(team)` on up to `threads` threads at once and waits for all. `body` must not throw.
/// One thread (and a forked child) runs it in place.
void parallel(int threads, FunctionRef<void(Team&)> body) noexcept;

/// Hands out 0, 1, 2, … to whoever asks first.
class TaskQueue {
 public:
  int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

/// Hands out 0 to count - 1 in runs, long ones first: for tasks that read on where the one before
/// ended.
class RunQueue {
 public:
  struct Run {
    int64_t begin, end;
  };
  RunQueue(int64_t count, int threads) : count_(count), threads_(threads) {}
  /// An empty run at the end.
  Run take();
  /// The same with another length: `end_of(begin)` is behind `begin` and at most count.
  Run take(FunctionRef<int64_t(int64_t)> end_of);
  /// A thread's next part of what is left.
  int64_t part(int64_t left) const { return left / (2 * threads_); }
  /// Where the next run will begin.
  int64_t next() const { return next_.load(std::memory_order_relaxed); }

 private:
  int64_t count_;
  int threads_;
  alignas(64) std::atomic<int64_t> next_{0};
};

/// Calls `body(begin, end)` over [0, count) in pieces of `grain`, on as many threads as pay off.
/// Results must not depend on where the pieces are cut.
void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) noexcept;

/// Threads used by every operation: MOEKIT_NUM_THREADS, else what the process may run on. 1 in a
/// forked child, where the parent's threads do not exist any more. Never more than the calling
/// thread's ThreadLimit.
int num_threads();
/// While it lives, operations called from this thread use at most `most` threads (0: as before).
class ThreadLimit {
 public:
  explicit ThreadLimit(int most);
  ~ThreadLimit();
  ThreadLimit(const ThreadLimit&) = delete;
  ThreadLimit& operator=(const ThreadLimit&) = delete;

 private:
  int before_;
};
/// Sets it for this process; throws ValueError unless 1 <= threads <= 1024.
void set_num_threads(int threads);

}  // namespace moe
