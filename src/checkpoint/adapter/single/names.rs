//! The modules of a model, by every name that a file of factors may have for them.

use std::collections::HashMap;

use super::Target;
use super::aliases::{self, Alias, Shapes};
use super::components::{self, Component};
use crate::adapter::cuts::{Cut, Rows};
use crate::adapter::subject::Subject;

/// What OpenCLIP calls its fused projection, which is no module's weight.
const IN_PROJECTION: &str = ".in_proj_weight";

/// The tensors by the part of the model and by the flattened name of the module: dots are underscores.
pub(super) struct Names<'m> {
    model: &'m Subject,
    by_name: HashMap<(Component, String), Vec<Target>>,
}

/// The modules below a root, for their shapes.
struct Below<'m> {
    model: &'m Subject,
    root: &'static str,
}

impl Shapes for Below<'_> {
    fn shape(&self, module: &str) -> Option<&[usize]> {
        let name = format!("{}{module}.weight", self.root);
        let tensor = self.model.by_name.get(&name)?;
        Some(&self.model.tensors[*tensor].shape)
    }

    fn has(&self, prefix: &str) -> bool {
        let begins = |name: &str| {
            name.strip_prefix(self.root)
                .is_some_and(|name| name.starts_with(prefix))
        };
        self.model.tensors.iter().any(|tensor| begins(&tensor.name))
    }
}

impl<'m> Names<'m> {
    /// The names of the model in the folder `part` of a pipeline, or of one by itself.
    pub(super) fn of(part: &str, model: &'m Subject) -> Self {
        let names = model.tensors.iter().map(|tensor| tensor.name.as_str());
        let mut own: HashMap<(Component, String), Vec<Target>> = HashMap::new();
        let mut other: HashMap<(Component, String), Vec<Target>> = HashMap::new();
        for (root, component) in components::roots(part, names) {
            let below = Below { model, root };
            for (tensor, entry) in model.tensors.iter().enumerate() {
                let name = entry.name.strip_prefix(root);
                let module = name.and_then(|name| {
                    name.strip_suffix(".weight")
                        .or_else(|| name.strip_suffix(IN_PROJECTION))
                });
                let Some(module) = module else { continue };
                let aliases = match component {
                    Component::Denoiser => aliases::of_denoiser(module, &below),
                    Component::Text(_) => aliases::of_text_encoder(module),
                };
                for Alias {
                    module,
                    rows,
                    into_rows,
                } in aliases
                {
                    let cut = Cut {
                        rows,
                        into_rows,
                        ..Cut::WHOLE
                    };
                    let targets = other.entry((component, flat(&module))).or_default();
                    targets.push(Target { tensor, cut });
                }
                if entry.name.ends_with(".weight") {
                    let cut = Cut::WHOLE;
                    let targets = own.entry((component, flat(module))).or_default();
                    targets.push(Target { tensor, cut });
                }
            }
        }
        // A name of its own comes first.
        for (name, targets) in other {
            own.entry(name).or_insert(targets);
        }
        Self {
            model,
            by_name: own,
        }
    }

    /// The tensors of a module, each with the part of it that is meant; none if the model has no such module.
    ///
    /// # Errors
    /// Two tensors have that name once it is flattened.
    pub(super) fn find(
        &self,
        component: Option<Component>,
        module: &str,
    ) -> Result<&[Target], [String; 2]> {
        let component = component.unwrap_or(Component::Denoiser);
        let Some(targets) = self.by_name.get(&(component, flat(module))) else {
            return Ok(&[]);
        };
        let whole =
            |target: &&Target| target.cut.rows == Rows::All && target.cut.into_rows == Rows::All;
        let mut whole = targets.iter().filter(whole);
        match (whole.next(), whole.next()) {
            (Some(first), Some(second)) => {
                let name =
                    |target: &Target| format!("`{}`", self.model.tensors[target.tensor].name);
                Err([name(first), name(second)])
            }
            _ => Ok(targets),
        }
    }
}

fn flat(name: &str) -> String {
    name.replace('.', "_")
}
