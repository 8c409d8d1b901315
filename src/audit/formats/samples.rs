//! Reports for the tests of formats: a realistic one and a hostile one.

use serde_json::json;

use crate::{
    CheckInfo, Command, Finding, HeatMap, Histogram, Place, PolicyChange, Report, Severity,
    Skipped, Table, find_check,
};

const NAN: &str = "values.nan";
const DEAD: &str = "values.dead-rows";
const VOCABULARY: &str = "structure.vocab-size";
const DISAGREE: &str = "tokenizer.ids-disagree";
const TEMPLATE: &str = "tokenizer.chat-template";

/// A check of the registry.
fn check(id: &str) -> &'static CheckInfo {
    find_check(id).expect(id)
}

const ROLES: [&str; 9] = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
];

/// A report on a broken merge of 32 layers that has everything a format can show.
pub(super) fn realistic() -> Report {
    let mut report = Report::new(Command::Check, "models/llama-merge");
    report.say(
        "model",
        "LlamaForCausalLM, 32 layers, 8.03 B parameters, BF16",
    );
    report.say("tensors", "291 in 4 files, 16.06 GB");
    report.say("read", "all values, 11.2 s, 1.43 GB/s");
    report.checked = [NAN, DEAD, VOCABULARY, DISAGREE].map(check).into();
    report.skipped.push(Skipped {
        check: check(TEMPLATE),
        why: "the checkpoint has no chat template".into(),
        needed: false,
    });
    let weight = |layer: usize, role: &str| {
        Place::tensor(
            format!("model.layers.{layer}.{role}"),
            Some(format!("model-0000{}-of-00004.safetensors", layer / 8 + 1)),
        )
    };
    for (layer, count) in [(11, 1), (12, 4096)] {
        let found = format!("{count} of 58720256 elements, the first at [0, 17]");
        let place = weight(layer, "mlp.down_proj.weight");
        report
            .findings
            .push(Finding::new(check(NAN), place, "no NaN", found));
    }
    for layer in 0..14 {
        let found = format!("{} of 14336 rows", 3 + layer * 5 % 11);
        let place = weight(layer, "mlp.up_proj.weight");
        report
            .findings
            .push(Finding::new(check(DEAD), place, "none", found).with_severity(Severity::Warning));
    }
    let place = Place::field("config.json", "vocab_size");
    let found = "128256, and the embedding has 128320 rows";
    report
        .findings
        .push(Finding::new(check(VOCABULARY), place, "128320", found));
    let place = Place::field("generation_config.json", "eos_token_id");
    let expected = "[128001], as in config.json";
    report
        .findings
        .push(Finding::new(check(DISAGREE), place, expected, "[128009]"));
    report.policy.push(PolicyChange {
        check: check(DEAD),
        from: Severity::Note,
        to: Some(Severity::Warning),
        count: 14,
    });
    report.heat_maps.push(spread());
    report.histograms.push(norms());
    report.tables.push(Table {
        title: "Largest tensors".into(),
        columns: ["tensor", "shape", "dtype", "rms", "largest"]
            .map(String::from)
            .into(),
        rows: (0..6)
            .map(|at| {
                vec![
                    format!("model.layers.{at}.mlp.gate_proj.weight"),
                    "[14336, 4096]".into(),
                    "BF16".into(),
                    format!("0.0{}", 131 + at * 3),
                    format!("0.{}", 62 + at),
                ]
            })
            .collect(),
    });
    report.details = json!({"elements": 8_030_261_248_u64});
    report.sort();
    report
}

/// Ratios that grow with depth, with one outlier and one NaN.
fn spread() -> HeatMap {
    let value = |role: usize, layer: usize| {
        let depth = layer as f64 / 31.0;
        let wave = ((layer * 7 + role * 13) % 10) as f64 / 10.0;
        let outlier = if layer == 21 && (4..7).contains(&role) {
            6.0
        } else {
            1.0
        };
        match (role, layer) {
            (6, 11 | 12) => Some(f64::NAN),
            (8, 0) => None,
            (7 | 8, _) => Some(0.004 * (1.0 + wave)),
            _ => Some((0.012 + 0.05 * depth) * (1.0 + 0.3 * wave) * outlier),
        }
    };
    HeatMap {
        title: "Difference by layer and role".into(),
        unit: "L2 of the difference / L2 of the first".into(),
        roles: ROLES.map(String::from).into(),
        layers: (0..32).map(|layer: usize| layer.to_string()).collect(),
        values: (0..9)
            .map(|role| (0..32).map(|layer| value(role, layer)).collect())
            .collect(),
    }
}

fn norms() -> Histogram {
    let bar = |at: i32| {
        let (from, to) = (f64::from(at) * 0.005, f64::from(at + 1) * 0.005);
        let height = (-(from - 0.01).powi(2) / 0.0015).exp() * 4e8;
        (from, to, height as u64)
    };
    Histogram {
        title: "Elements by their distance in ULPs".into(),
        unit: "ULPs of the dtype".into(),
        bars: (-24..24).map(bar).collect(),
    }
}

/// Text that an attacker might put into names, values and paths.
pub(super) const HOSTILE: &[&str] = &[
    "</script></style><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "'onmouseover='alert(1)",
    "\x1b[2J\x1b]0;title\x07",
    "::error file=x::forged",
    "x\n::set-output name=a::b",
    "%0A::warning::forged",
    "##[error]forged",
    "a | b |\n| c | d |",
    "`code` ``` @everyone #1 [link](javascript:alert(1)) ![i](http://e.x/i.png) www.e.x",
    "\\| _emphasis_ ~~gone~~ $x$ <!-- hidden",
    "]]> &amp; &#0; <?xml?>",
    "\0\u{1}\u{b}\u{fffe}\u{ffff}\u{7f}\u{85}",
    "\u{202e}desrever\u{2066}",
    "../../etc/passwd",
    "{{ page }} {% for x in y %}",
    "",
    " ",
];

/// A report in which every text from a checkpoint is hostile.
pub(super) fn hostile() -> Report {
    let long = "x|`<\u{1b}".repeat(300_000);
    let texts = || HOSTILE.iter().copied().chain([long.as_str()]);
    let mut report = Report::new(Command::Verify, HOSTILE[0]);
    for text in texts() {
        for check in [NAN, DEAD, VOCABULARY, DISAGREE].map(check) {
            for place in [
                Place::tensor(text, Some(text.to_owned())),
                Place::field(text, text),
            ] {
                report
                    .findings
                    .push(Finding::new(check, place, text, text).with_remedy(text));
            }
        }
        report.say(text, text);
        report.skipped.push(Skipped {
            check: check(TEMPLATE),
            why: text.to_owned(),
            needed: true,
        });
        let row = vec![text.to_owned(); 3];
        report.tables.push(Table {
            title: text.to_owned(),
            columns: row.clone(),
            // Rows with more and fewer cells than headings.
            rows: vec![
                vec![text.to_owned(); 4],
                row,
                vec![text.to_owned()],
                Vec::new(),
            ],
        });
        report.heat_maps.push(HeatMap {
            title: text.to_owned(),
            unit: text.to_owned(),
            roles: vec![text.to_owned(); 2],
            layers: vec![text.to_owned(); 2],
            values: vec![vec![Some(f64::INFINITY), None, Some(1.0)], vec![Some(-0.0)]],
        });
        report.histograms.push(Histogram {
            title: text.to_owned(),
            unit: text.to_owned(),
            bars: vec![(f64::NAN, f64::INFINITY, u64::MAX), (0.0, -1.0, 0)],
        });
    }
    report.checked = vec![check(NAN)];
    report.details = json!({"text": HOSTILE});
    report.sort();
    report
}
