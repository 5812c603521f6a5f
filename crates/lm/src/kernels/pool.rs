//! A few threads that wait close by for the next piece of work.
//!
//! A decoded token takes 150 pieces of work of a few microseconds each, too short to wake a sleeping
//! thread for. So a worker watches for the next piece for a moment before it sleeps.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Threads that run the tasks of one piece of work at a time; the caller is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    /// One caller at a time.
    turn: Mutex<u32>,
    workers: Vec<(Arc<Sleep>, Thread)>,
    handles: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Number of the piece of work in the high half, tasks of it that nobody has taken in the low one.
    open: AtomicU64,
    work: UnsafeCell<Option<Work>>,
    done: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

type Work = *const (dyn Fn(usize) + Sync);

#[derive(Default)]
struct Sleep(AtomicBool);

// SAFETY: `work` is written only while no task is open and none is running, which `open` and `done`
// order: a thread reads it only after taking a task, and the piece of work ends only after that task.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `work` is to something `Sync`.
unsafe impl Send for Shared {}

/// Looks for work so many times before going to sleep: some tens of microseconds.
const LOOKS: u32 = 3000;
/// Looks at a running task so many times before giving the processor to somebody else.
const PATIENCE: u32 = 20_000;

impl Pool {
    /// A pool of `threads`, the caller included.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            open: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool {
            shared: shared.clone(),
            turn: Mutex::new(0),
            workers: Vec::new(),
            handles: Vec::new(),
        };
        for idx in 1..threads {
            let (shared, sleep) = (shared.clone(), Arc::new(Sleep::default()));
            let own = sleep.clone();
            let spawned = std::thread::Builder::new()
                .name(format!("lm-{idx}"))
                .spawn(move || shared.serve(&own));
            // A system that has no more threads leaves the work to those there are.
            if let Ok(handle) = spawned {
                pool.workers.push((sleep, handle.thread().clone()));
                pool.handles.push(handle);
            }
        }
        pool
    }

    /// The pool of this process: one thread for each processor that it may use.
    pub fn shared() -> Arc<Pool> {
        static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
        POOL.get_or_init(|| {
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            Arc::new(Pool::new(threads))
        })
        .clone()
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)` to `task(n - 1)`, each once, in any order, on any thread.
    pub fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        if n <= 1 || self.workers.is_empty() {
            return (0..n).for_each(task);
        }
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = turn.wrapping_add(1);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No thread uses the pointer after its last task is done, and
        // this function returns only then.
        let work: Work = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Work>(task) };
        // SAFETY: the turn is ours and no task is open or running.
        unsafe { *shared.work.get() = Some(work) };
        shared.done.store(0, Ordering::Relaxed);
        let n_tasks = u32::try_from(n).expect("fewer than four thousand million tasks");
        shared
            .open
            .store(u64::from(*turn) << 32 | u64::from(n_tasks), Ordering::SeqCst);
        for (sleep, thread) in &self.workers {
            if sleep.0.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        while shared.take_one() {}
        let mut looks = 0u32;
        while shared.done.load(Ordering::Acquire) < n {
            looks += 1;
            if looks.is_multiple_of(PATIENCE) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        drop(turn);
        if panicked {
            resume_unwind(Box::new("a task of the pool panicked"));
        }
    }

    /// Runs `task(idx, part)` for each part of `len` items of `data`; the last may be shorter.
    pub fn parts<T: Send>(&self, data: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let whole = data.len();
        let shared = Parts(data.as_mut_ptr());
        self.run(whole.div_ceil(len), &|idx| {
            let start = idx * len;
            // SAFETY: parts of different tasks do not overlap and end inside the data; each task runs once.
            let part = unsafe { std::slice::from_raw_parts_mut(shared.at(start), len.min(whole - start)) };
            task(idx, part);
        });
    }
}

/// A buffer whose parts are written by different threads.
pub(super) struct Parts<T>(*mut T);

// SAFETY: those who use the pointer write disjoint parts.
unsafe impl<T: Send> Sync for Parts<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Parts<T> {}

impl<T> Parts<T> {
    pub(super) fn new(data: &mut [T]) -> Parts<T> {
        Parts(data.as_mut_ptr())
    }

    /// # Safety
    ///
    /// `offset` must lie inside the buffer (or at its end), and what is written through the pointer must be no
    /// other thread's.
    pub(super) unsafe fn at(&self, offset: usize) -> *mut T {
        // SAFETY: the caller vouches for it.
        unsafe { self.0.add(offset) }
    }
}

impl Shared {
    /// Takes and runs one open task, if there is one.
    fn take_one(&self) -> bool {
        let taken = self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
            (open as u32 > 0).then(|| open - 1)
        });
        let Ok(open) = taken else { return false };
        // SAFETY: a task of this piece of work is ours and not done, so the pointer stays as it is.
        let work = unsafe { (*self.work.get()).expect("open tasks have their work") };
        // SAFETY: as above, and what it points to outlives the piece of work.
        let ran = catch_unwind(AssertUnwindSafe(|| unsafe { (*work)(open as u32 as usize - 1) }));
        if ran.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    /// A worker's life.
    fn serve(&self, sleep: &Sleep) {
        let mut looks = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.take_one() {
                looks = 0;
            } else if looks < LOOKS {
                looks += 1;
                std::hint::spin_loop();
            } else {
                sleep.0.store(true, Ordering::SeqCst);
                // Work that was published before the flag was seen needs no waking.
                if self.open.load(Ordering::SeqCst) as u32 == 0 && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                sleep.0.store(false, Ordering::SeqCst);
                looks = 0;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (_, thread) in &self.workers {
            thread.unpark();
        }
        for handle in self.handles.drain(..) {
            // A worker catches its tasks' panics, so joining cannot fail in a way that matters here.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whoever_is_awake() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for round in 0..if cfg!(miri) { 10 } else { 200 } {
                let n = round % 37;
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|idx| {
                    counts[idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
            let mut data = vec![0usize; 103];
            pool.parts(&mut data, 10, |idx, part| part.fill(idx));
            assert!(data.iter().enumerate().all(|(at, &idx)| at / 10 == idx));
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        let failed = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|idx| assert_ne!(idx, 5))));
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|idx| {
            sum.fetch_add(idx, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }

    #[test]
    fn several_callers_take_turns() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..if cfg!(miri) { 5 } else { 100 } {
                        let sum = AtomicUsize::new(0);
                        pool.run(9, &|idx| {
                            sum.fetch_add(idx, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 36);
                    }
                });
            }
        });
    }
}
