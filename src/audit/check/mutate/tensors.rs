//! Defects in tensors, and in what config.json states about them.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::draft::{Draft, Role, Tensor};
use super::{Defect, Obstacle};
use crate::check::values::{fused, is_norm};
use crate::check::{structure, values};
use architecture::{
    Family, announced_mtp_layers, is_derived_buffer, is_output_head, is_router, layer_stacks,
    module_index,
};
use checkpoint::Dtype;
use numeric::FloatType;

type Planted = Result<String, Obstacle>;

/// A `model_type` that is in no table.
const UNHEARD_OF: &str = "weldment_unheard_of";

pub(super) static DEFECTS: &[Defect] = &[
    Defect::new("a tensor lost", &structure::MISSING, |draft| {
        known(draft)?;
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        lose(draft, &[at])
    }),
    Defect::new("a row lost", &structure::SHAPE, |draft| {
        known(draft)?;
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        draft.change(at, |tensor| {
            let row = tensor.row();
            tensor.shape[0] -= 1;
            let bytes = Arc::make_mut(&mut tensor.bytes);
            bytes.truncate(bytes.len() - row);
        })
    }),
    Defect::new("a tensor too many", &structure::UNEXPECTED, |draft| {
        known(draft)?;
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        let name = format!("{}0.extra.weight", draft.original.layers_before);
        draft.rewrite(|tensors| {
            let mut extra = tensors[at].clone();
            extra.name.clone_from(&name);
            tensors.push(extra);
            Ok(())
        })?;
        Ok(name)
    }),
    Defect::new(
        "a tensor lost where the family is unknown",
        &structure::UNEVEN,
        |draft| {
            draft.set_config("model_type", json!(UNHEARD_OF))?;
            let role = of_all_layers(draft, matrix_role(draft)?.1, 4)?;
            lose(draft, &[role[1].1])
        },
    ),
    Defect::new("a layer of another kind", &structure::KIND, |draft| {
        unknown(draft)?;
        one_stack(draft)?;
        let experts = draft.original.tensors.iter().any(is_expert);
        if !experts {
            return Err(Obstacle::model("it has no experts"));
        }
        let dense = layers(draft) - 1;
        draft.set_config("moe_layers", (0..dense).collect::<Vec<usize>>().into())?;
        Ok(format!("{}{dense}", draft.original.layers_before))
    }),
    Defect::new(
        "announced layers lost",
        &structure::MTP,
        |draft| match announced_mtp_layers(&draft.original.config) {
            Some(_) => Err(Obstacle::model("its config announces such layers already")),
            None => draft.set_config("num_nextn_predict_layers", json!(1)),
        },
    ),
    Defect::new(
        "a tensor lost from the last layer",
        &structure::UNEVEN,
        |draft| {
            unknown(draft)?;
            let role = of_all_layers(draft, matrix_role(draft)?.1, 4)?;
            lose(draft, &[role[role.len() - 1].1])
        },
    ),
    Defect::new(
        "a tensor lost from two layers",
        &structure::UNEVEN,
        |draft| {
            unknown(draft)?;
            let role = of_all_layers(draft, matrix_role(draft)?.1, 6)?;
            lose(draft, &[role[2].1, role[4].1])
        },
    ),
    Defect::new(
        "another width in the config of an unknown family",
        &structure::SHAPE,
        |draft| {
            unknown(draft)?;
            one_stack(draft)?;
            draft.original.embedding()?;
            norm_role(draft)?;
            let (field, width) = number(draft, &["hidden_size", "n_embd", "d_model"])?;
            draft.set_config(field, json!(width + 1))
        },
    ),
    Defect::new(
        "a layer less in the config of an unknown family",
        &structure::LAYERS,
        |draft| {
            unknown(draft)?;
            one_stack(draft)?;
            // Layers that predict further tokens may follow.
            let further = number(draft, &["num_nextn_predict_layers"]).map_or(0, |(_, more)| more);
            let fewer = (layers(draft) as u64).checked_sub(1 + further);
            let fewer = fewer.filter(|fewer| *fewer > 0);
            let fewer = fewer.ok_or_else(|| Obstacle::model("it has too few layers"))?;
            draft.set_config("num_hidden_layers", json!(fewer))
        },
    ),
    Defect::new(
        "a layer more in the config of an unknown family",
        &structure::LAYERS,
        |draft| {
            unknown(draft)?;
            one_stack(draft)?;
            draft.set_config("num_hidden_layers", json!(layers(draft) + 1))
        },
    ),
    Defect::new(
        "a layer lost where the family is unknown",
        &structure::LAYERS,
        |draft| {
            unknown(draft)?;
            one_stack(draft)?;
            let lost = format!("{}1.", draft.original.layers_before);
            draft.rewrite(|tensors| {
                tensors.retain(|tensor| !tensor.name.starts_with(&lost));
                Ok(())
            })?;
            Ok(lost.trim_end_matches('.').to_owned())
        },
    ),
    Defect::new(
        "an embedding lost where the family is unknown",
        &structure::MISSING,
        |draft| {
            unknown(draft)?;
            one_stack(draft)?;
            let embedding = draft.original.embedding()?;
            let rows =
                |tensor: &&Tensor| tensor.shape.len() == 2 && tensor.shape[0] >= embedding.shape[0];
            let mut other = draft.original.tensors.iter().filter(rows);
            if other.any(|tensor| tensor.name != embedding.name && !is_output_head(&tensor.name)) {
                return Err(Obstacle::model("another matrix has as many rows"));
            }
            head_of_any(draft)?;
            lose(draft, &[place_of(draft, &embedding.name)?])
        },
    ),
    Defect::new(
        "a tied head of its own where the family is unknown",
        &structure::TIED_DIFFERS,
        |draft| {
            unknown(draft)?;
            one_stack(draft)?;
            draft.set_config("tie_word_embeddings", json!(true))?;
            own_head(draft, head_of_any(draft)?)
        },
    ),
    Defect::new(
        "a token more in the config of an unknown family",
        &structure::VOCAB,
        |draft| {
            unknown(draft)?;
            one_stack(draft)?;
            draft.set_config("vocab_size", json!(draft.original.rows()? + 1))
        },
    ),
    Defect::new("a layer more in the config", &structure::LAYERS, |draft| {
        known(draft)?;
        let fields = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
        let (field, layers) = number(draft, &fields)?;
        draft.set_config(field, json!(layers + 1))
    }),
    Defect::new(
        "an expert more in the config",
        &structure::EXPERTS,
        |draft| {
            known(draft)?;
            let kind = draft
                .original
                .config
                .get("model_type")
                .and_then(Value::as_str);
            let mixture = kind.and_then(Family::named).and_then(Family::mixture);
            let fields =
                mixture.map_or(&["num_local_experts"][..], |mixture| mixture.counts.experts);
            let (field, experts) = number(draft, fields)?;
            draft.set_config(field, json!(experts + 1))
        },
    ),
    Defect::new("every router lost", &structure::MISSING, |draft| {
        known(draft)?;
        lose_all(draft, |tensor| is_router(&tensor.name))
    }),
    Defect::new(
        "all experts of a layer lost",
        &structure::EXPERTS,
        |draft| {
            known(draft)?;
            let before = &draft.original.layers_before;
            let layer = |tensor: &Tensor| {
                let (layer, _) = tensor.name.strip_prefix(before.as_str())?.split_once('.')?;
                Some(layer.to_owned())
            };
            let experts = draft
                .original
                .tensors
                .iter()
                .filter(|tensor| is_expert(tensor));
            let last = experts.filter_map(layer).next_back();
            let last = last.ok_or_else(|| Obstacle::model("it has no experts"))?;
            lose_all(draft, |tensor| {
                is_expert(tensor) && layer(tensor).as_ref() == Some(&last)
            })
        },
    ),
    Defect::new("all experts lost", &structure::EXPERTS, |draft| {
        known(draft)?;
        lose_all(draft, is_expert)
    }),
    Defect::new("a tensor of experts lost", &structure::MISSING, |draft| {
        known(draft)?;
        let tensors = &draft.original.tensors;
        let experts: Vec<usize> = (0..tensors.len())
            .filter(|&at| is_expert(&tensors[at]))
            .collect();
        match experts.get(experts.len() / 2) {
            Some(&at) => lose(draft, &[at]),
            None => Err(Obstacle::model("it has no experts")),
        }
    }),
    Defect::new("a token more in the config", &structure::VOCAB, |draft| {
        known(draft)?;
        let rows = draft.original.rows()?;
        draft.set_config("vocab_size", json!(rows + 1))
    }),
    Defect::new(
        "a tied head of its own",
        &structure::TIED_DIFFERS,
        |draft| {
            known(draft)?;
            let head = head_name(draft)?;
            draft.set_config("tie_word_embeddings", json!(true))?;
            own_head(draft, head)
        },
    ),
    Defect::new("a head lost", &structure::NO_HEAD, |draft| {
        known(draft)?;
        let head = head_name(draft)?;
        draft.set_config("tie_word_embeddings", json!(false))?;
        draft.rewrite(|tensors| {
            tensors.retain(|tensor| tensor.name != head);
            Ok(())
        })?;
        Ok(head)
    }),
    Defect::new("a layer in another dtype", &structure::MIXED, |draft| {
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        draft.change(at, |tensor| {
            let values = tensor.values().unwrap_or_default();
            tensor.dtype = match tensor.dtype {
                Dtype::F32 => Dtype::BF16,
                _ => Dtype::F32,
            };
            tensor.set(values);
        })
    }),
    Defect::new("a NaN", &values::NAN, |draft| set_one(draft, f64::NAN)),
    Defect::new("an infinity", &values::INFINITE, |draft| {
        set_one(draft, f64::INFINITY)
    }),
    Defect::new("rows that never arrived", &values::HOLE, |draft| {
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        let tensor = &draft.original.tensors[at];
        let rows = tensor.shape[0] / 2;
        if rows < 4 || rows * tensor.row() < 32 * tensor.dtype.bitsize() / 8 {
            return Err(Obstacle::model("its matrices are too small"));
        }
        draft.change(at, |tensor| {
            let row = tensor.row();
            Arc::make_mut(&mut tensor.bytes)[row..(1 + rows) * row].fill(0);
        })
    }),
    Defect::new("a flipped bit of an exponent", &values::OUTLIER, |draft| {
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        let format = FloatType::from_dtype(draft.original.tensors[at].dtype);
        let largest = format.map_or(0.0, FloatType::largest);
        set_one(draft, (largest / 2.0).min(1e30))
    }),
    Defect::new("a matrix of zeros", &values::ALL_ZERO, |draft| {
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        fill(draft, at, 0.0)
    }),
    Defect::new("a norm of zeros", &values::ALL_ZERO, |draft| {
        let (_, at) = in_the_middle(norm_role(draft)?);
        fill(draft, at, 0.0)
    }),
    Defect::new("a matrix of one value", &values::CONSTANT, |draft| {
        let (_, at) = in_the_middle(matrix_role(draft)?.1);
        fill(draft, at, draft.original.tensors[at].rms())
    }),
    Defect::new("subnormal weights", &values::SUBNORMAL, |draft| {
        let (name, role) = matrix_role(draft)?;
        let rewritten = draft.rewrite(|tensors| {
            for &(_, at) in role {
                make_subnormal(&mut tensors[at])?;
            }
            Ok(())
        });
        rewritten.map(|()| format!("{}*.{name}", draft.original.layers_before))
    }),
    Defect::new("a norm of a thousandth", &values::NORM_COLLAPSED, |draft| {
        let (_, at) = in_the_middle(norm_role(draft)?);
        scale(draft, at, 1e-3)
    }),
    Defect::new(
        "rows of zeros in the embedding",
        &values::DEAD_ROWS,
        |draft| {
            let embedding = draft.original.embedding()?;
            let at = place_of(draft, &embedding.name)?;
            draft.change(at, |tensor| {
                let row = tensor.row();
                Arc::make_mut(&mut tensor.bytes)[..row].fill(0);
            })
        },
    ),
    Defect::new(
        "a matrix of 256 times its size",
        &values::OUT_OF_LINE,
        |draft| {
            let role = of_all_layers(draft, matrix_role(draft)?.1, 4)?;
            let (_, at) = in_the_middle(role);
            scale(draft, at, 256.0)
        },
    ),
    Defect::new(
        "a layer copied over another",
        &values::IDENTICAL_LAYERS,
        |draft| {
            let of_layer = |layer: usize| -> Vec<(&str, usize)> {
                let roles = draft.original.roles.iter();
                let found = roles.filter_map(|(role, tensors)| {
                    let of = tensors.iter().find(|(of, _)| *of == layer)?;
                    Some((role.as_str(), of.1))
                });
                found.collect()
            };
            let alike = |&(one, other): &(usize, usize)| {
                let (one, other) = (of_layer(one), of_layer(other));
                one.len() == other.len()
                    && one.iter().zip(&other).all(|(one, other)| {
                        one.0 == other.0
                            && draft.original.tensors[one.1].shape
                                == draft.original.tensors[other.1].shape
                    })
            };
            let layers = layers(draft);
            let pair = (1..layers).map(|layer| (layer - 1, layer)).rfind(alike);
            let (from, to) = pair.ok_or_else(|| {
                Obstacle::model("no two neighbouring layers have the same tensors")
            })?;
            draft.rewrite(|tensors| {
                for ((_, from), (_, to)) in of_layer(from).into_iter().zip(of_layer(to)) {
                    tensors[to].bytes = tensors[from].bytes.clone();
                }
                Ok(())
            })?;
            Ok(format!("{}{to}", draft.original.layers_before))
        },
    ),
    Defect::new(
        "an expert copied over another",
        &values::IDENTICAL_EXPERTS,
        |draft| {
            let first = expert(draft, 0)?;
            let second = expert(draft, 1)?;
            draft.rewrite(|tensors| {
                for (from, to) in first.iter().zip(&second) {
                    let bytes = from.of(tensors).to_vec();
                    to.of_mut(tensors).copy_from_slice(&bytes);
                }
                Ok(())
            })?;
            Ok(draft.original.tensors[second[0].tensor].name.clone())
        },
    ),
    Defect::new("an expert of zeros", &values::ALL_ZERO, |draft| {
        let expert = expert(draft, 1)?;
        draft.rewrite(|tensors| {
            expert[0].of_mut(tensors).fill(0);
            Ok(())
        })?;
        Ok(draft.original.tensors[expert[0].tensor].name.clone())
    }),
    Defect::new("a router of zeros", &values::ZERO_ROUTER, |draft| {
        fill(draft, router(draft)?, 0.0)
    }),
    Defect::new(
        "a row of zeros in a router",
        &values::ZERO_ROUTER_ROW,
        |draft| {
            draft.change(router(draft)?, |tensor| {
                let row = tensor.row();
                Arc::make_mut(&mut tensor.bytes)[..row].fill(0);
            })
        },
    ),
    Defect::new(
        "a row of a router copied over another",
        &values::ROUTER_ROWS,
        |draft| {
            draft.change(router(draft)?, |tensor| {
                let row = tensor.row();
                Arc::make_mut(&mut tensor.bytes).copy_within(..row, row);
            })
        },
    ),
];

/// Requires a table of the model's family: only then can a missing tensor be noticed.
fn known(draft: &Draft<'_>) -> Result<(), Obstacle> {
    let kind = draft
        .original
        .config
        .get("model_type")
        .and_then(Value::as_str);
    match kind {
        Some(kind) if Family::named(kind).is_some() => Ok(()),
        Some(kind) => Err(Obstacle::Model(format!("no table has the family `{kind}`"))),
        None => Err(Obstacle::model("its config names no `model_type`")),
    }
}

/// Changes the model's type to one that is in no table.
fn unknown(draft: &Draft<'_>) -> Result<(), Obstacle> {
    draft.set_config("model_type", json!(UNHEARD_OF)).map(drop)
}

/// Requires a model with one stack of layers and one part. Only there does config.json say what the layers are like.
fn one_stack(draft: &Draft<'_>) -> Result<(), Obstacle> {
    let names = draft
        .original
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str());
    let nested = structure::is_nested(&draft.original.config);
    match layer_stacks(names).len() == 1 && !nested && layers(draft) > 2 {
        true => Ok(()),
        false => Err(Obstacle::model(
            "it is not one stack of three layers or more, with one config",
        )),
    }
}

/// The output head of a model that is in no table.
fn head_of_any(draft: &Draft<'_>) -> Result<String, Obstacle> {
    let classes = draft
        .original
        .config
        .get("architectures")
        .and_then(Value::as_array);
    let mut classes = classes.into_iter().flatten().filter_map(Value::as_str);
    if !classes.any(structure::has_head) {
        return Err(Obstacle::model(
            "its `architectures` name no model with a head",
        ));
    }
    let mut names = draft.original.tensors.iter().map(|tensor| &tensor.name);
    let stored = names.find(|name| is_output_head(name) && name.ends_with(".weight"));
    Ok(stored.map_or_else(|| "lm_head.weight".to_owned(), String::clone))
}

/// Stores a head that differs from the embedding in one sign.
fn own_head(draft: &Draft<'_>, head: String) -> Planted {
    let embedding = draft.original.embedding()?.clone();
    draft.rewrite(|tensors| {
        tensors.retain(|tensor| tensor.name != head);
        let mut own = embedding;
        own.name.clone_from(&head);
        if let Some(last) = Arc::make_mut(&mut own.bytes).last_mut() {
            *last ^= 0x80;
        }
        tensors.push(own);
        Ok(())
    })?;
    Ok(head)
}

fn layers(draft: &Draft<'_>) -> usize {
    let roles = draft.original.roles.values().flatten();
    roles.map(|(layer, _)| layer + 1).max().unwrap_or(0)
}

/// The role with a matrix of float weights in the most layers; routers and experts do not count.
fn matrix_role<'d>(draft: &'d Draft<'_>) -> Result<(&'d str, &'d Role), Obstacle> {
    let is_weight = |(role, tensors): &(&String, &Role)| {
        let fits = |&(_, at): &(usize, usize)| {
            let tensor = &draft.original.tensors[at];
            let wide = tensor.shape.iter().filter(|&&dim| dim > 1).count();
            wide > 1
                && tensor.shape[0] > 1
                && FloatType::from_dtype(tensor.dtype).is_some()
                && tensor.rms() > 0.0
                && !is_expert(tensor)
                && !is_router(&tensor.name)
        };
        let other = ["bias", "expert", "router", "gate.weight"];
        !other.iter().any(|part| role.contains(part))
            && !is_norm(role)
            && !is_derived_buffer(role)
            && tensors.iter().all(fits)
    };
    let roles = draft.original.roles.iter().filter(is_weight);
    roles
        .max_by_key(|(role, tensors)| (tensors.len(), std::cmp::Reverse(role.as_str())))
        .map(|(role, tensors)| (role.as_str(), tensors))
        .ok_or_else(|| Obstacle::model("it has no layers with a matrix of weights"))
}

/// A norm's role in the layers.
fn norm_role<'d>(draft: &'d Draft<'_>) -> Result<&'d Role, Obstacle> {
    let is_size = |(role, tensors): &(&String, &Role)| {
        let fits = |&(_, at): &(usize, usize)| draft.original.tensors[at].rms() > 0.0;
        is_norm(role) && role.ends_with(".weight") && tensors.len() >= 4 && tensors.iter().all(fits)
    };
    let mut roles = draft.original.roles.iter().filter(is_size);
    let role = roles.next().map(|(_, tensors)| tensors);
    role.ok_or_else(|| {
        Obstacle::model("it has no four layers with norms whose weights are not zero")
    })
}

/// Returns the role if all layers of the stack have it and there are at least `least` of them.
fn of_all_layers<'d>(
    draft: &Draft<'_>,
    role: &'d Role,
    least: usize,
) -> Result<&'d Role, Obstacle> {
    match role.len() >= least && role.len() == layers(draft) {
        true => Ok(role),
        false => Err(Obstacle::Model(format!(
            "it has no {least} layers that are alike"
        ))),
    }
}

fn in_the_middle(role: &Role) -> (usize, usize) {
    role[role.len() / 2]
}

fn place_of(draft: &Draft<'_>, name: &str) -> Result<usize, Obstacle> {
    let mut tensors = draft.original.tensors.iter();
    let place = tensors.position(|tensor| tensor.name == name);
    place.ok_or_else(|| Obstacle::Model(format!("it has no {name}")))
}

/// Removes tensors and returns their names.
fn lose(draft: &Draft<'_>, lost: &[usize]) -> Planted {
    let names: BTreeSet<&str> = lost
        .iter()
        .map(|&at| draft.original.tensors[at].name.as_str())
        .collect();
    draft.rewrite(|tensors| {
        tensors.retain(|tensor| !names.contains(tensor.name.as_str()));
        Ok(())
    })?;
    Ok(names.into_iter().collect::<Vec<&str>>().join(", "))
}

/// Removes all tensors of a kind that a mixture has.
fn lose_all(draft: &Draft<'_>, which: impl Fn(&Tensor) -> bool) -> Planted {
    let tensors = draft.original.tensors.iter().enumerate();
    let lost: Vec<usize> = tensors
        .filter_map(|(at, tensor)| which(tensor).then_some(at))
        .collect();
    match lost[..] {
        [first, ..] => lose(draft, &lost).map(|_| {
            let first = &draft.original.tensors[first].name;
            format!("{first} and {} others", lost.len() - 1)
        }),
        [] => Err(Obstacle::model("it has no experts")),
    }
}

/// Whether a tensor belongs to one expert or holds all experts of a layer.
fn is_expert(tensor: &Tensor) -> bool {
    tensor.name.contains(".experts.") || fused(&tensor.name, &tensor.shape).is_some()
}

/// A number of the config, at the top or in the language model's part, under the first of these names that is there.
fn number(draft: &Draft<'_>, fields: &[&'static str]) -> Result<(&'static str, u64), Obstacle> {
    let config = &draft.original.config;
    let parts = [Some(config), config.get("text_config")];
    let found = parts.into_iter().flatten().find_map(|part| {
        fields
            .iter()
            .find_map(|field| Some((*field, part.get(field)?.as_u64()?)))
    });
    found.ok_or_else(|| Obstacle::Model(format!("its config has no {}", fields.join(" or "))))
}

/// The name that the head has, or would have.
fn head_name(draft: &Draft<'_>) -> Result<String, Obstacle> {
    let kind = draft
        .original
        .config
        .get("model_type")
        .and_then(Value::as_str);
    let head = kind.and_then(Family::named).and_then(|family| family.head);
    let names = head.map_or(&[][..], |head| head.names);
    let stored = |name: &&&str| place_of(draft, name).is_ok();
    let name = names.iter().find(stored).or(names.first());
    let name = name.ok_or_else(|| Obstacle::model("its family has no head of its own"))?;
    let classes = draft
        .original
        .config
        .get("architectures")
        .and_then(Value::as_array);
    let mut classes = classes.into_iter().flatten().filter_map(Value::as_str);
    match classes.any(structure::has_head) {
        true => Ok((*name).to_owned()),
        false => Err(Obstacle::model(
            "its `architectures` name no model with a head",
        )),
    }
}

fn set_one(draft: &Draft<'_>, value: f64) -> Planted {
    let (_, at) = in_the_middle(matrix_role(draft)?.1);
    draft.change(at, |tensor| {
        let mut values = tensor.values().unwrap_or_default();
        values[1] = value;
        tensor.set(values);
    })
}

fn fill(draft: &Draft<'_>, at: usize, value: f64) -> Planted {
    draft.change(at, |tensor| {
        let count = tensor.values().map_or(0, |values| values.len());
        tensor.set(vec![value; count]);
    })
}

fn scale(draft: &Draft<'_>, at: usize, by: f64) -> Planted {
    draft.change(at, |tensor| {
        let mut values = tensor.values().unwrap_or_default();
        values.iter_mut().for_each(|value| *value *= by);
        tensor.set(values);
    })
}

/// Clears the exponents and keeps signs and mantissas; the last bit is set, so that no value becomes zero.
fn make_subnormal(tensor: &mut Tensor) -> Result<(), Obstacle> {
    let keep: &[u8] = match tensor.dtype {
        Dtype::F16 => &[0xff, 0x83],
        Dtype::BF16 => &[0x7f, 0x80],
        Dtype::F32 => &[0xff, 0xff, 0x7f, 0x80],
        Dtype::F64 => &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x80],
        _ => return Err(Obstacle::Model(format!("it is stored in {}", tensor.dtype))),
    };
    for element in Arc::make_mut(&mut tensor.bytes).chunks_exact_mut(keep.len()) {
        element
            .iter_mut()
            .zip(keep)
            .for_each(|(byte, keep)| *byte &= keep);
        element[0] |= 1;
    }
    Ok(())
}

fn router(draft: &Draft<'_>) -> Result<usize, Obstacle> {
    let is_router = |tensor: &Tensor| {
        is_router(&tensor.name)
            && tensor.shape.len() == 2
            && tensor.shape[0] > 1
            && tensor.rms() > 0.0
    };
    let place = draft.original.tensors.iter().position(is_router);
    place.ok_or_else(|| Obstacle::model("it has no experts"))
}

/// A range of a tensor's bytes.
struct ByteRange {
    tensor: usize,
    first: usize,
    length: usize,
}

impl ByteRange {
    fn of<'t>(&self, tensors: &'t [Tensor]) -> &'t [u8] {
        &tensors[self.tensor].bytes[self.first..][..self.length]
    }

    fn of_mut<'t>(&self, tensors: &'t mut [Tensor]) -> &'t mut [u8] {
        &mut Arc::make_mut(&mut tensors[self.tensor].bytes)[self.first..][..self.length]
    }
}

/// The pieces of one expert in the first layer with experts, in the order of their names.
fn expert(draft: &Draft<'_>, number: usize) -> Result<Vec<ByteRange>, Obstacle> {
    let tensors = &draft.original.tensors;
    // The name of the expert's layer, and the expert's number or, for a fused tensor, the number of experts.
    let apart = |tensor: &'_ Tensor| {
        let (before, rest) = tensor.name.split_once("experts.")?;
        let (of, _) = rest.split_once('.')?;
        Some((before.to_owned(), module_index(of)?))
    };
    let together = |tensor: &'_ Tensor| {
        let (before, count) = fused(&tensor.name, &tensor.shape)?;
        Some((before.to_owned(), count))
    };
    let is_weight = |at: &usize| {
        FloatType::from_dtype(tensors[*at].dtype).is_some() && tensors[*at].rms() > 0.0
    };
    let mut pieces = Vec::new();
    if let Some((layer, _)) = tensors.iter().find_map(apart) {
        let of = |at: &usize| apart(&tensors[*at]) == Some((layer.clone(), number));
        let places = (0..tensors.len()).filter(of).filter(is_weight);
        pieces.extend(places.map(|tensor| ByteRange {
            tensor,
            first: 0,
            length: tensors[tensor].bytes.len(),
        }));
    } else if let Some((layer, count)) = tensors.iter().find_map(together) {
        let of = |at: &usize| together(&tensors[*at]) == Some((layer.clone(), count));
        let places = (0..tensors.len()).filter(of).filter(is_weight);
        pieces.extend(places.map(|tensor| ByteRange {
            tensor,
            first: number * tensors[tensor].row(),
            length: tensors[tensor].row(),
        }));
    }
    pieces.sort_by_key(|piece| &tensors[piece.tensor].name);
    match pieces.is_empty() {
        true => Err(Obstacle::model("it has no experts")),
        false => Ok(pieces),
    }
}
