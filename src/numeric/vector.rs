//! Kernels compiled for several instruction sets; the best one is chosen at run time.

/// Compiles a function for AVX-512, for AVX2 with FMA, and for the build's own target (NEON on ARM), and calls the
/// best version that the processor supports.
///
/// The body is plain Rust that the compiler vectorises, so what it calls must be inlined. All versions return the
/// same bits: the compiler is never allowed to reorder or fuse floating-point operations.
#[macro_export]
macro_rules! vectorised {
    ($($function:tt)*) => {
        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2+fma+f16c+bmi1+bmi2",
            "x86_64+avx2+fma+f16c+bmi1+bmi2",
        ))]
        $($function)*
    };
}

pub(crate) use vectorised;
