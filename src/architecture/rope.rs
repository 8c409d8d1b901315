//! Rotary positions as configs spell them: `rope_theta` and `rope_scaling` (transformers 4), `rope_parameters`
//! (transformers 5), or both.

use serde_json::{Map, Value};

use super::fields::{FieldError, Fields};

/// What to do where the two spellings differ.
pub const ONE_SPELLING: &str =
    "transformers 4 and 5 would disagree; keep rope_scaling and rope_theta, or rope_parameters";

/// The names of the field that names the kind, the one that counts first.
const KIND: [&str; 2] = ["rope_type", "type"];

/// The fields of a spelling that are no numbers of its scaling.
const NO_SCALING: [&str; 4] = ["rope_theta", "partial_rotary_factor", "type", "rope_type"];

/// The fields of a config that speak of rotary positions.
#[derive(Debug, Clone, Copy)]
pub struct RopeFields<'c> {
    config: Fields<'c>,
    new: Option<Fields<'c>>,
    old: Option<Fields<'c>>,
}

impl<'c> RopeFields<'c> {
    /// Of a config; an empty object says nothing.
    ///
    /// # Errors
    /// If a spelling is no object, has an object for each kind of layers, or does not scale as the other one does.
    pub fn read(config: Fields<'c>) -> Result<Self, FieldError> {
        let spelled = |name, within| -> Result<Option<Fields<'c>>, FieldError> {
            let Some(fields) = config.object(name, within)? else {
                return Ok(None);
            };
            if fields.entries().any(|(_, value)| value.is_object()) {
                return Err(config.wrong(name, "numbers that are the same for all layers"));
            }
            Ok(fields.entries().next().is_some().then_some(fields))
        };
        let fields = RopeFields {
            config,
            new: spelled("rope_parameters", "rope_parameters.")?,
            old: spelled("rope_scaling", "rope_scaling.")?,
        };
        fields.check_agreement()?;
        Ok(fields)
    }

    /// Refuses spellings that scale in different ways, and one that names two kinds.
    fn check_agreement(&self) -> Result<(), FieldError> {
        for fields in self.spellings() {
            let kinds = (fields.text("rope_type")?, fields.text("type")?);
            if let (Some(kind), Some(other)) = kinds
                && same_kind(kind) != same_kind(other)
            {
                let expected = format!("`{kind}`, as `rope_type` says");
                return Err(fields.wrong_with("type", expected, "keep one of the two"));
            }
        }
        let (Some(new), Some(old)) = (self.new, self.old) else {
            return Ok(());
        };
        let differs = |name: &str| {
            let expected = "the same as in `rope_parameters`";
            Err(old.wrong_with(name, expected, ONE_SPELLING))
        };
        let kind = same_kind(rope_kind(&new));
        if kind != same_kind(rope_kind(&old)) {
            return differs(
                KIND.iter()
                    .find(|name| old.is_written(name))
                    .unwrap_or(&KIND[0]),
            );
        }
        if kind == "default" {
            return Ok(());
        }
        for (name, _) in new.entries().chain(old.entries()) {
            let value = |fields: &Fields<'c>| match fields.get(name) {
                Some(value) => value.as_f64().map_or_else(|| value.clone(), Value::from),
                None => self.implied(kind, name).unwrap_or_default(),
            };
            if !NO_SCALING.contains(&name.as_str()) && value(&new) != value(&old) {
                return differs(name);
            }
        }
        Ok(())
    }

    /// What classes take for a field of a scaling that is left out; none if that is not one number.
    fn implied(&self, kind: &str, name: &str) -> Option<Value> {
        let at_top = |name: &str| self.config.get(name).and_then(Value::as_f64);
        let longest = at_top("max_position_embeddings");
        let before = at_top("original_max_position_embeddings").or(longest);
        Some(match (kind, name) {
            ("longrope" | "yarn", "factor") => (longest? / before?).into(),
            (_, "original_max_position_embeddings") => before?.into(),
            ("yarn", "beta_fast") => 32.0.into(),
            ("yarn", "beta_slow") => 1.0.into(),
            ("yarn", "truncate") => true.into(),
            _ => return None,
        })
    }

    /// The objects that are there, that of transformers 5 first.
    pub fn spellings(&self) -> impl Iterator<Item = Fields<'c>> {
        [self.new, self.old].into_iter().flatten()
    }

    /// A number that may stand in either spelling or at the top; none if it stands nowhere.
    ///
    /// # Errors
    /// If it is no finite number, or not the same wherever it stands.
    pub fn number(&self, name: &str) -> Result<Option<f64>, FieldError> {
        let mut found: Option<f64> = None;
        for fields in self.spellings().chain([self.config]) {
            let Some(number) = fields.number(name)? else {
                continue;
            };
            if found.is_some_and(|found| found != number) {
                return Err(fields.wrong_with(name, "the same wherever it is said", ONE_SPELLING));
            }
            found = Some(number);
        }
        Ok(found)
    }

    /// What changes the frequencies, as transformers 4 writes it; none if nothing does.
    pub fn scaling(&self) -> Option<Map<String, Value>> {
        let mut scaling = Map::new();
        let fields = self.spellings().next()?;
        for (key, value) in fields.entries() {
            if !NO_SCALING.contains(&key.as_str()) {
                scaling.insert(key.clone(), value.clone());
            }
        }
        let kind = rope_kind(&fields);
        scaling.insert("rope_type".into(), kind.into());
        (kind != "default").then_some(scaling)
    }
}

/// The fields of transformers 4 that a config lacks whose rotary positions are spelled for transformers 5 only. mlx-lm,
/// among others, reads no other. None if the spelling has an object for each kind of layers, as 4 has no fields for that.
pub fn older_spelling(config: &Value) -> Vec<(&'static str, Value)> {
    let fields = Fields::new(config).and_then(RopeFields::read);
    let (Ok(fields), None) = (&fields, config.get("rope_theta")) else {
        return Vec::new();
    };
    let Some(new) = fields.new.filter(|_| fields.old.is_none()) else {
        return Vec::new();
    };
    let mut lacking = Vec::new();
    if let Some(theta) = new.get("rope_theta") {
        let scaling = fields
            .scaling()
            .map(|scaling| three_fields(scaling, config));
        let scaling = scaling.map_or(Value::Null, Value::Object);
        lacking.extend([("rope_theta", theta.clone()), ("rope_scaling", scaling)]);
        let partial = new.get("partial_rotary_factor").cloned();
        let partial = partial.filter(|_| config.get("partial_rotary_factor").is_none());
        lacking.extend(partial.map(|partial| ("partial_rotary_factor", partial)));
    }
    lacking
}

/// The scaling as Phi-3's class in transformers 4 and mlx-lm read it, if it is longrope and nothing else is said: exactly
/// the kind, under its old name, and the factors. The lengths stand at the top of the config.
fn three_fields(scaling: Map<String, Value>, config: &Value) -> Map<String, Value> {
    const FACTORS: [&str; 2] = ["short_factor", "long_factor"];
    const BEFORE: &str = "original_max_position_embeddings";
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    let (longest, before) = (
        number(config.get("max_position_embeddings")),
        number(config.get(BEFORE)),
    );
    let told_elsewhere = |(key, value): (&String, &Value)| match key.as_str() {
        "rope_type" | "short_factor" | "long_factor" => true,
        BEFORE => number(Some(value)) == before,
        "factor" => {
            longest
                .zip(before)
                .map(|(longest, before)| longest / before)
                == number(Some(value))
        }
        _ => false,
    };
    let is_longrope = scaling.get("rope_type").and_then(Value::as_str) == Some("longrope");
    let complete = FACTORS.iter().all(|factors| scaling.contains_key(*factors));
    if !is_longrope || !complete || !scaling.iter().all(told_elsewhere) {
        return scaling;
    }
    let mut three: Map<String, Value> = scaling
        .into_iter()
        .filter(|(key, _)| FACTORS.contains(&key.as_str()))
        .collect();
    three.insert("type".into(), "longrope".into());
    three
}

/// The kind of rotary positions that a spelling names, `default` if it names none.
fn rope_kind<'c>(fields: &Fields<'c>) -> &'c str {
    let named = |key: &&str| fields.get(key).and_then(Value::as_str);
    KIND.iter().find_map(named).unwrap_or("default")
}

/// The name under which a kind is compared: one of those that mean the same.
fn same_kind(kind: &str) -> &str {
    match kind {
        "su" => "longrope",
        // Its sections are for images; the frequencies are those of the default.
        "mrope" => "default",
        kind => kind,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The base and what changes the frequencies.
    type Read = (Option<f64>, Option<Map<String, Value>>);

    fn read(config: &Value) -> Result<Read, FieldError> {
        let fields = RopeFields::read(Fields::new(config)?)?;
        Ok((fields.number("rope_theta")?, fields.scaling()))
    }

    #[test]
    fn both_spellings_say_the_same() {
        let linear = json!({"factor": 2.0, "rope_type": "linear"});
        let linear = linear.as_object().cloned();
        let both = [
            json!({"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            json!({"rope_parameters": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}}),
        ];
        for config in both {
            assert_eq!(read(&config).unwrap(), (Some(5.0), linear.clone()));
        }
        let plain = json!({"rope_theta": 5.0, "rope_scaling": null, "rope_parameters": {"rope_type": "default"}});
        assert_eq!(read(&plain).unwrap(), (Some(5.0), None));
        assert_eq!(read(&json!({"rope_scaling": {}})).unwrap(), (None, None));
    }

    #[test]
    fn what_older_readers_lack_is_what_they_would_read() {
        let yarn = json!({"rope_theta": 5.0, "rope_type": "yarn", "factor": 2.0, "partial_rotary_factor": 0.5});
        let config = json!({ "rope_parameters": yarn });
        let mut both = config.clone();
        for (field, value) in older_spelling(&config) {
            both[field] = value;
        }
        assert_eq!(
            both["rope_scaling"],
            json!({"factor": 2.0, "rope_type": "yarn"})
        );
        assert_eq!(both["partial_rotary_factor"], 0.5);
        assert_eq!(read(&both).unwrap(), read(&config).unwrap());
        let complete = [
            both,
            json!({"rope_theta": 5.0}),
            json!({"rope_parameters": {"full_attention": {"rope_theta": 6.0}}}),
            json!({}),
        ];
        for config in complete {
            assert_eq!(older_spelling(&config), [], "{config}");
        }
        // Phi-3's class in transformers 4 takes three fields, if the others say nothing more.
        let mut phi = json!({
            "max_position_embeddings": 128, "original_max_position_embeddings": 32,
            "rope_parameters": {"rope_theta": 5.0, "rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0],
                                "original_max_position_embeddings": 32, "factor": 4.0}
        });
        let three = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]});
        assert_eq!(older_spelling(&phi)[1], ("rope_scaling", three));
        phi["rope_parameters"]["factor"] = json!(3.0);
        assert_eq!(older_spelling(&phi)[1].1["factor"], 3.0);
        let plain = json!({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}});
        assert_eq!(
            older_spelling(&plain),
            [("rope_theta", json!(5.0)), ("rope_scaling", Value::Null)]
        );
    }

    #[test]
    fn what_they_do_not_agree_on_is_named() {
        let message = |config: Value| read(&config).unwrap_err().to_string();
        let differ = json!({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}});
        assert_eq!(
            message(differ),
            "`rope_theta`: expected the same wherever it is said, found 5.0"
        );
        let nested = json!({"rope_parameters": {"full_attention": {"rope_theta": 6.0}}});
        assert!(
            message(nested)
                .contains("`rope_parameters`: expected numbers that are the same for all")
        );
        assert!(message(json!({"rope_scaling": 3})).contains("an object"));
    }

    #[test]
    fn spellings_that_scale_differently_are_refused() {
        let both = |new: Value, old: Value| {
            let config = json!({
                "max_position_embeddings": 128, "original_max_position_embeddings": 32,
                "rope_parameters": new, "rope_scaling": old
            });
            read(&config).map_err(|error| error.field)
        };
        let field = |field: &str| Err(field.to_owned());
        let linear = json!({"rope_type": "linear", "factor": 2.0});
        for (new, old, expected) in [
            (
                json!({"rope_type": "default"}),
                linear.clone(),
                field("rope_scaling.rope_type"),
            ),
            (
                json!({"rope_theta": 5.0}),
                json!({"type": "linear", "factor": 2.0}),
                field("rope_scaling.type"),
            ),
            (
                linear.clone(),
                json!({"factor": 2.0}),
                field("rope_scaling.rope_type"),
            ),
            (
                linear.clone(),
                json!({"type": "linear", "factor": 4}),
                field("rope_scaling.factor"),
            ),
            (
                json!({"rope_type": "yarn", "type": "linear"}),
                json!({}),
                field("rope_parameters.type"),
            ),
            (
                json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}),
                json!({"rope_type": "yarn", "factor": 4.0}),
                field("rope_scaling.beta_fast"),
            ),
        ] {
            assert_eq!(both(new.clone(), old.clone()), expected, "{new} {old}");
        }
        for (new, old) in [
            (linear, json!({"type": "linear", "factor": 2})),
            (
                json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "original_max_position_embeddings": 32}),
                json!({"type": "yarn"}),
            ),
            (
                json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "factor": 4.0}),
                json!({"type": "su", "short_factor": [1.0], "long_factor": [2.0]}),
            ),
            (
                json!({"rope_type": "default"}),
                json!({"type": "mrope", "mrope_section": [1, 2]}),
            ),
        ] {
            assert!(both(new.clone(), old.clone()).is_ok(), "{new} {old}");
        }
    }
}
