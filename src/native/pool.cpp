#include "pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <shared_mutex>
#include <thread>

namespace upslope {
namespace {

constexpr int MOST_THREADS = 256;
constexpr int SPINS = 4000;  // looks for the others' end before a thread gives way to other programs

// How long a thread looks for work before it sleeps: waking one takes longer than most work does. One that has looked in
// vain does not look for long the next time; cores are wanted for something else then, such as environments' processes.
constexpr std::chrono::microseconds PATIENCE{250}, HASTE{60};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// While one of these lives, numbers too small for a float's full precision (below 1.2e-38) count as 0 in this thread. A
// policy that is nearly sure of its actions makes gradients of them, and x86 takes a hundred times as long for each.
class Flushed {
 public:
#if defined(__x86_64__)
  Flushed() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~Flushed() { __builtin_ia32_ldmxcsr(before_); }
  Flushed(const Flushed&) = delete;

 private:
  unsigned before_;
#else
  Flushed() {}
#endif
};

// What is to be done is one number: which call (24 bits), threads it takes (8), tasks (16), next task (16). A task is
// taken by exchanging the whole number, so that a thread that was late for one call cannot take a task of the next.
struct Ticket {
  uint64_t bits;
  uint64_t call() const { return bits >> 40; }
  int threads() const { return bits >> 32 & 0xff; }
  int tasks() const { return bits >> 16 & 0xffff; }
  int next() const { return bits & 0xffff; }
};

class Pool {
 public:
  void run(int tasks, int threads, void (*work)(void*, int, int), void* context) {
    begin(tasks, threads, work, context);
    finish();
  }

  void begin(int tasks, int threads, void (*work)(void*, int, int), void* context) {
    finish();
    start(threads - 1);
    work_.store(work, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint64_t call = Ticket{ticket_.load()}.call() + 1;
    ticket_.store(call << 40 | uint64_t(threads - 1) << 32 | uint64_t(tasks) << 16);
    ticket_.notify_all();
    unfinished_ = tasks;
  }

  void finish() {
    if (unfinished_ == 0) return;
    take_tasks(0);
    for (int spins = 0; done_.load(std::memory_order_acquire) < unfinished_; ++spins)
      spins < SPINS ? pause() : std::this_thread::yield();
    unfinished_ = 0;
  }

 private:
  // Where no more threads can be had, those that there are do the work, or the caller alone.
  void start(int wanted) {
    try {
      for (; started_ < wanted; ++started_) std::thread(&Pool::serve, this, started_ + 1).detach();
    } catch (const std::exception&) {
    }
  }

  void take_tasks(int worker) {
    const Flushed flushed;
    Ticket ticket{ticket_.load()};
    while (ticket.next() < ticket.tasks() && worker <= ticket.threads()) {
      if (!ticket_.compare_exchange_weak(ticket.bits, ticket.bits + 1)) continue;
      work_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), ticket.next(), worker);
      done_.fetch_add(1, std::memory_order_release);
      ticket.bits = ticket_.load();
    }
  }

  void serve(int worker) {
    auto patience = PATIENCE;
    for (;;) {
      take_tasks(worker);
      const uint64_t seen = ticket_.load();
      if (Ticket{seen}.next() < Ticket{seen}.tasks() && worker <= Ticket{seen}.threads()) continue;
      const auto until = std::chrono::steady_clock::now() + patience;
      auto idle = [&] { return ticket_.load(std::memory_order_relaxed) == seen; };
      while (idle() && std::chrono::steady_clock::now() < until)
        for (int spins = 0; spins < 50 && idle(); ++spins) pause();
      patience = idle() ? HASTE : PATIENCE;
      if (idle()) ticket_.wait(seen);
    }
  }

  int started_ = 0, unfinished_ = 0;
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> done_{0};
  std::atomic<void (*)(void*, int, int)> work_{nullptr};
  std::atomic<void*> context_{nullptr};
};

// What this process works with. Never destroyed: the pool's threads are detached, and sleep until the process ends.
struct Own {
  std::shared_mutex calls;  // shared by those that go on
  std::mutex one_call;      // of the pool
  Pool pool;
};
Own* own = new Own;

// A process forks between calls, and what was begun is done before. So its child finds nothing half done and no value
// missing; it has none of the threads, nor their locks, and begins anew.
void before_fork() {
  own->calls.lock();
  own->one_call.lock();
  own->pool.finish();
}

void after_fork() {
  own->one_call.unlock();
  own->calls.unlock();
}

void in_child() { own = new Own; }

[[maybe_unused]] const int registered = pthread_atfork(before_fork, after_fork, in_child);

constexpr int MOST_TASKS = 0xffff;  // of one ticket

}  // namespace

Call::Call(std::mutex& mutex) : unforked_(own->calls), alone_(mutex) {}

void begin(int tasks, int threads, void (*work)(void*, int, int), void* context) {
  if (tasks > MOST_TASKS) return in_parallel(tasks, threads, work, context);
  const std::lock_guard lock(own->one_call);
  own->pool.begin(tasks, std::clamp(threads, 1, MOST_THREADS), work, context);
}

void finish() {
  const std::lock_guard lock(own->one_call);
  own->pool.finish();
}

void in_parallel(int tasks, int threads, void (*work)(void*, int, int), void* context) {
  threads = std::min({threads, tasks, MOST_THREADS});
  if (threads <= 1) {
    const Flushed flushed;
    for (int task = 0; task < tasks; ++task) work(context, task, 0);
    return;
  }
  const std::lock_guard lock(own->one_call);
  struct Part {
    void (*work)(void*, int, int);
    void* context;
    int from;
  };
  for (int from = 0; from < tasks; from += MOST_TASKS) {
    Part part{work, context, from};
    own->pool.run(
        std::min(MOST_TASKS, tasks - from), threads,
        [](void* p, int task, int worker) {
          auto* part = static_cast<Part*>(p);
          part->work(part->context, part->from + task, worker);
        },
        &part);
  }
}

}  // namespace upslope
