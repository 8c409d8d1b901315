//! The values of parameters that their sources try or recommend.

/// A parameter's values in its sources.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usual {
    /// The methods' names.
    pub methods: &'static [&'static str],
    /// The parameter's name.
    pub param: &'static str,
    /// The least value that a source has.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Who has them.
    pub source: &'static str,
}

impl Usual {
    /// Whether a value is none that a source has.
    pub fn excludes(&self, value: f64) -> bool {
        !(self.min..=self.max).contains(&value)
    }
}

static USUAL: &[Usual] = &[
    Usual {
        methods: &["dare_linear", "dare_ties"],
        param: "density",
        min: 0.01,
        max: 1.0,
        source: "the paper drops up to 99 %",
    },
    Usual {
        methods: &["tsvm", "wudi", "swudi_a", "actmat"],
        param: "lambda",
        min: 0.05,
        max: 2.0,
        source: "1 in the papers, less for LoRA",
    },
    Usual {
        methods: &["iso_c", "iso_cts"],
        param: "lambda",
        min: 0.1,
        max: 3.0,
        source: "1 to 2 in the paper",
    },
    Usual {
        methods: &["cart"],
        param: "rank_ratio",
        min: 0.01,
        max: 0.5,
        source: "0.04 to 0.32 in the paper",
    },
    Usual {
        methods: &["star"],
        param: "eta",
        min: 0.1,
        max: 0.9,
        source: "0.4 in the paper",
    },
    Usual {
        methods: &["subspace_boosting"],
        param: "beta",
        min: 0.0,
        max: 0.3,
        source: "about 0.01 in the paper",
    },
    Usual {
        methods: &["regmean"],
        param: "reduction",
        min: 0.1,
        max: 0.99,
        source: "0.1 to 0.9 in the paper",
    },
    Usual {
        methods: &["aim"],
        param: "omega",
        min: 0.1,
        max: 1.0,
        source: "0.2 to 0.6 in the paper",
    },
    Usual {
        methods: &["localize_stitch"],
        param: "sparsity",
        min: 0.01,
        max: 0.5,
        source: "0.05 in the paper, 0.1 in MergeBench",
    },
    Usual {
        methods: &["svc"],
        param: "alpha",
        min: 0.05,
        max: 1.0,
        source: "0.1 to 1 in the paper",
    },
];

/// The usual values of a method's parameter, if its sources say any.
pub fn usual(method: &str, param: &str) -> Option<&'static Usual> {
    let mut all = USUAL.iter();
    all.find(|usual| usual.param == param && usual.methods.contains(&method))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ParamValue, all};

    #[test]
    fn every_range_is_of_a_parameter_and_holds_its_default() {
        for usual in USUAL {
            for name in usual.methods {
                let method = all().iter().find(|method| method.info().name == *name);
                let mut params = method.expect(name).info().params.iter();
                let param = params.find(|param| param.name == usual.param).expect(name);
                if let Some(ParamValue::Number(default)) = param.default {
                    assert!(!usual.excludes(default), "{name}.{}", usual.param);
                }
                assert!(usual.excludes(usual.max + 1.0) && usual.excludes(f64::NAN));
            }
        }
    }
}
