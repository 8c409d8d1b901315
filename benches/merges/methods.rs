//! The methods that are timed: their recipes over `base`, `a` and `b`, and how fast they shall be.

/// A method, with a recipe in which `{x}` stands for the path of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    pub(crate) recipe: &'static str,
    /// The most that it may take of the copy floor.
    pub(crate) of_floor: f64,
    /// How many times faster than mergekit it shall be.
    pub(crate) faster: f64,
}

impl Method {
    /// Its place in [`METHODS`].
    pub(crate) fn place(&self) -> usize {
        let place = METHODS.iter().position(|method| method.name == self.name);
        place.unwrap_or(METHODS.len())
    }
}

const fn method(name: &'static str, of_floor: f64, faster: f64, recipe: &'static str) -> Method {
    Method {
        name,
        recipe,
        of_floor,
        faster,
    }
}

/// All of them.
pub(crate) const METHODS: [Method; 14] = [
    method(
        "passthrough",
        1.25,
        15.0,
        "merge_method: passthrough\nmodels: [{model: {a}}]\n",
    ),
    method(
        "linear",
        1.25,
        15.0,
        "merge_method: linear\nmodels: [{model: {a}, parameters: {weight: 0.6}}, {model: {b}, parameters: {weight: 0.4}}]\n",
    ),
    method(
        "task_arithmetic",
        1.25,
        15.0,
        "merge_method: task_arithmetic\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5}\n",
    ),
    method(
        "slerp",
        1.6,
        15.0,
        "merge_method: slerp\nbase_model: {a}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {t: 0.4}\n",
    ),
    method(
        "nuslerp",
        1.6,
        15.0,
        "merge_method: nuslerp\nmodels: [{model: {a}, parameters: {weight: 0.6}}, {model: {b}, parameters: {weight: 0.4}}]\n",
    ),
    method(
        "multislerp",
        1.6,
        15.0,
        "merge_method: multislerp\nmodels: [{model: {a}, parameters: {weight: 0.6}}, {model: {b}, parameters: {weight: 0.4}}]\n",
    ),
    method(
        "karcher",
        1.6,
        15.0,
        "merge_method: karcher\nmodels: [{model: {a}}, {model: {b}}]\n",
    ),
    method(
        "model_stock",
        1.6,
        15.0,
        "merge_method: model_stock\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\n",
    ),
    method(
        "dare_linear",
        1.6,
        40.0,
        "merge_method: dare_linear\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5}\n",
    ),
    method(
        "dare_ties",
        1.6,
        40.0,
        "merge_method: dare_ties\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5}\n",
    ),
    method(
        "ties",
        2.0,
        60.0,
        "merge_method: ties\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5}\n",
    ),
    method(
        "breadcrumbs",
        2.0,
        60.0,
        "merge_method: breadcrumbs\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5, gamma: 0.01}\n",
    ),
    method(
        "sce",
        2.0,
        60.0,
        "merge_method: sce\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {select_topk: 0.5}\n",
    ),
    method(
        "della",
        3.0,
        40.0,
        "merge_method: della\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5, epsilon: 0.15}\n",
    ),
];
