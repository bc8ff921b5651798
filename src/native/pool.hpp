// Threads that work through the tasks of one call, and sleep between calls. One pool per process, used by one call at a
// time; the caller works too, so a thread that comes late costs nothing but its share.
#pragma once

#include <mutex>
#include <shared_mutex>

namespace upslope {

// One call at a time changes what `mutex` guards, while this lives; and the process does not fork.
class Call {
 public:
  explicit Call(std::mutex& mutex);

 private:
  std::shared_lock<std::shared_mutex> unforked_;
  std::unique_lock<std::mutex> alone_;
};

// Calls work(context, task, worker) for every task in 0 .. tasks - 1, on at most `threads` threads; worker is from 0 to
// threads - 1, and no two tasks run at once with the same worker. Must not be called from within a task.
void in_parallel(int tasks, int threads, void (*work)(void* context, int task, int worker), void* context);

template <class Work>
void in_parallel(int tasks, int threads, Work& work) {
  in_parallel(
      tasks, threads, [](void* context, int task, int worker) { (*static_cast<Work*>(context))(task, worker); }, &work);
}

// Lets other threads begin the tasks of a call, and returns at once: the caller goes on with something else until it
// calls `finish`, which does what is left. Any other call of this pool finishes it first.
void begin(int tasks, int threads, void (*work)(void* context, int task, int worker), void* context);
void finish();

}  // namespace upslope
