//! Memory for weights in large pages.
//!
//! Decoding a token reads every weight once. With pages of 4 KiB the processor's prefetching ends at
//! each page's border and must translate a new address; with pages of 2 MiB decoding is a third faster.
//! Matrices are smaller than that, so many of them lie in one chunk.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

const PAGE: usize = 2 << 20;
const CHUNK: usize = 16 * PAGE;

/// Hands out memory of its current chunk; a chunk lives as long as something lies in it.
#[derive(Default)]
pub struct Arena {
    chunk: Option<Arc<Chunk>>,
    used: usize,
}

struct Chunk {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a chunk is plain memory; regions of it do not overlap.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

/// Types for which all bytes zero is a value, and that need no dropping.
///
/// # Safety
///
/// It must be so.
pub(super) unsafe trait Zeroed: Copy {}

/// Items in an arena's memory, owned like a boxed slice.
pub(super) struct Region<T> {
    at: NonNull<T>,
    len: usize,
    _chunk: Arc<Chunk>,
    _items: PhantomData<T>,
}

// SAFETY: a region owns its items.
unsafe impl<T: Send> Send for Region<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Region<T> {}

impl Arena {
    pub(super) fn zeroed<T: Zeroed>(&mut self, len: usize) -> Region<T> {
        let bytes = len * size_of::<T>();
        let start = self.used.next_multiple_of(align_of::<T>());
        let (chunk, start) = match &self.chunk {
            Some(chunk) if start + bytes <= chunk.layout.size() => (chunk.clone(), start),
            _ => (Arc::new(Chunk::new(bytes.max(CHUNK).next_multiple_of(PAGE))), 0),
        };
        self.used = start + bytes;
        self.chunk = Some(chunk.clone());
        // SAFETY: the bytes lie inside the chunk and have not been handed out; the offset is a multiple of the
        // alignment, and a chunk begins at a page. They are written here for the first time, after the system
        // was asked for large pages, which it gives when memory is first used.
        let at = unsafe {
            let at = chunk.at.add(start);
            at.write_bytes(0, bytes);
            at.cast()
        };
        Region {
            at,
            len,
            _chunk: chunk,
            _items: PhantomData,
        }
    }
}

impl Chunk {
    fn new(bytes: usize) -> Chunk {
        let layout = Layout::from_size_align(bytes, PAGE).expect("a size below the address space");
        // SAFETY: the layout is not empty.
        let Some(at) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        // Miri knows no advice.
        #[cfg(all(target_os = "linux", not(miri)))]
        // SAFETY: advice about memory that is ours; whether the system follows it makes no difference to its content.
        unsafe {
            libc::madvise(at.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
        }
        Chunk { at, layout }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nothing lies in it any more.
        unsafe { dealloc(self.at.as_ptr(), self.layout) };
    }
}

impl<T> Deref for Region<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` items lie there, zeroed or written, for as long as the chunk does.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Region<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; no other region has these items.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SAFETY: numbers.
    unsafe impl Zeroed for u64 {}

    #[test]
    fn regions_are_zero_and_do_not_overlap() {
        let mut arena = Arena::default();
        // Two that fill a chunk each; fewer for Miri, which takes a microsecond for each.
        let large = if cfg!(miri) { 20_000 } else { 5_000_000 };
        let mut regions: Vec<Region<u64>> = [1, 1000, large, 3, large - 1000].map(|len| arena.zeroed(len)).into();
        drop(arena);
        for (idx, region) in regions.iter_mut().enumerate() {
            assert!(region.iter().all(|x| *x == 0));
            region.fill(idx as u64 + 1);
        }
        for (idx, region) in regions.iter().enumerate() {
            assert!(region.iter().all(|x| *x == idx as u64 + 1));
        }
    }
}
