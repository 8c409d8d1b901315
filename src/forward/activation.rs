//! The activations of gated MLPs.

use architecture::{FieldError, Fields};

/// The function applied to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    /// Exact, with the error function.
    Gelu,
    /// Approximated with the hyperbolic tangent.
    GeluTanh,
}

impl Activation {
    /// The activation with that name, from a field of the config.
    pub(super) fn named(fields: &Fields, field: &str, name: &str) -> Result<Self, FieldError> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Self::GeluTanh),
            _ => Err(fields.wrong(field, "silu, gelu or gelu_pytorch_tanh")),
        }
    }

    /// Sets each gate to `activation(gate) * up`.
    pub(super) fn gate(self, gates: &mut [f32], ups: &[f32]) {
        // The square root of 2 / pi.
        let root = (std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) as f32;
        let pairs = gates.iter_mut().zip(ups);
        match self {
            Self::Silu => pairs.for_each(|(x, up)| *x = *x / (1.0 + (-*x).exp()) * up),
            Self::Gelu => pairs.for_each(|(x, up)| {
                let wide = f64::from(*x);
                let inside = libm::erf(wide * std::f64::consts::FRAC_1_SQRT_2);
                *x = (0.5 * wide * (1.0 + inside)) as f32 * up;
            }),
            Self::GeluTanh => pairs.for_each(|(x, up)| {
                let inside = root * (*x + 0.044_715 * *x * *x * *x);
                *x = 0.5 * *x * (1.0 + inside.tanh()) * up;
            }),
        }
    }
}
