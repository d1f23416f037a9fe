//! What depends on the processor and the operating system: its instructions, loading in advance, large pages.

/// Whether the processor has the instructions of the level x86-64-v3.
///
/// A function that profits from them is compiled a second time, with
/// `#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]`, and called if this is true.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn is_x86_64_v3() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// Starts to load the place of a value into the processor's first cache.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing that a program can see. SSE is part of every x86-64.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>((place as *const T).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks the kernel for pages of 2 MB for a vector that is still empty.
///
/// With pages of 4 KB, the first access to each of them takes a tenth of the encoding time. Random accesses to a large
/// table are slower too.
pub fn advise_huge_pages<T>(vector: &Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        extern "C" {
            fn madvise(start: usize, bytes: usize, advice: std::ffi::c_int) -> std::ffi::c_int;
        }
        const PAGE: usize = 1 << 21;
        let (start, bytes) = (vector.as_ptr() as usize, vector.capacity() * std::mem::size_of::<T>());
        let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) & !(PAGE - 1));
        if first < end {
            // SAFETY: it is only advice (14 is MADV_HUGEPAGE), about whole pages that we own. The kernel may ignore it.
            unsafe { madvise(first, end - first, 14) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = vector;
}
