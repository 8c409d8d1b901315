//! Kernels compiled for several instruction sets, of which the best is chosen at run time.

/// Compiles a function for AVX-512, for AVX2 with FMA, and for whatever the build is for (NEON on ARM), and
/// calls the best that the processor has.
///
/// The body is plain Rust that the compiler turns into vectors; what it calls must be inlined into it. All
/// versions give the same bits: nothing here allows a compiler to reorder or to contract sums.
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
