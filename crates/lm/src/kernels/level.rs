//! Which instruction set to use, asked of the processor at run time.

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::simd::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

/// An instruction set that this processor has: no other value can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Level {
    /// What this processor has, plainest first.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level(Set::Portable)];
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            levels.push(Level(Set::Neon));
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            levels.push(Level(Set::Avx2));
            if is_x86_feature_detected!("avxvnni") {
                levels.push(Level(Set::AvxVnni));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Level(Set::Avx512));
                if is_x86_feature_detected!("avx512bf16") {
                    levels.push(Level(Set::Avx512Bf16));
                }
            }
        }
        levels
    }

    pub fn best() -> Level {
        Level::available().pop().unwrap_or(Level(Set::Portable))
    }

    /// The level of this name, if the processor has it.
    pub fn named(name: &str) -> Option<Level> {
        Level::available().into_iter().find(|level| level.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: a `Level` exists only after the processor was asked for the features of its set.
        unsafe {
            match self.0 {
                Set::Portable => kernel.run::<Portable>(),
                #[cfg(target_arch = "aarch64")]
                Set::Neon => with_neon(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => with_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::AvxVnni => with_avx_vnni(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::Avx512 => with_avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::Avx512Bf16 => with_avx512_bf16(kernel),
            }
        }
    }
}

/// A piece of work over vectors of any instruction set. `run` must be `#[inline(always)]`, as must
/// everything it calls with `S`: only so is it compiled with the set's instructions.
pub(super) trait Kernel {
    type Output;

    /// # Safety
    ///
    /// The processor must have the instructions of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn with_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    unsafe { kernel.run::<Neon>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    unsafe { kernel.run::<Avx2<false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn with_avx_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    unsafe { kernel.run::<Avx2<true>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    unsafe { kernel.run::<Avx512<false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn with_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    unsafe { kernel.run::<Avx512<true>>() }
}
