//! Merge methods: one file each, and the registry that the recipe reader, the docs and the tests walk.
//!
//! A method knows its parameters, how many models it takes, and how to turn the parameter values of one
//! tensor into a [`Program`](crate::engine::Program). It knows no file, no tensor name, no thread.

mod params;

pub use params::{
    Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue, TensorParams,
};

/// A merge method: its description, and the programs it makes.
pub trait Method: Send + Sync {
    /// What the recipe reader, the help and the reference say of it.
    fn info(&self) -> &'static MethodInfo;
}

/// Every merge method, in the order of the reference.
pub fn all() -> &'static [&'static dyn Method] {
    &[]
}

/// The method of that name.
pub fn find(name: &str) -> Option<&'static dyn Method> {
    all().iter().copied().find(|method| method.info().name == name)
}
