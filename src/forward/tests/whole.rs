//! The whole decoder compared with its twin, and the guarantees of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::{Value, json};

use super::super::{Continued, Decoder, ForwardError, InputObserver, Observer, Until};
use super::twin::Twin;
use super::{Held, Kept, assert_near, random};

const VOCABULARY: usize = 2100;

pub(super) fn config() -> Value {
    json!({
        "model_type": "qwen3_moe", "hidden_size": 12, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": VOCABULARY,
        "intermediate_size": 10, "moe_intermediate_size": 7, "num_experts": 3, "num_experts_per_tok": 2,
        "norm_topk_prob": true, "decoder_sparse_step": 2, "rms_norm_eps": 1e-6, "rope_theta": 50.0,
        "use_sliding_window": true, "sliding_window": 4, "tie_word_embeddings": false,
    })
}

pub(super) fn held() -> Held {
    let mut held = Held::default();
    held.add("model.embed_tokens.weight", &[VOCABULARY, 12], 0.0, 1.0);
    held.add("lm_head.weight", &[VOCABULARY, 12], 0.0, 1.0);
    held.add("model.norm.weight", &[12], 1.0, 0.3);
    for layer in 0..3 {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            held.add(&name(norm), &[12], 1.0, 0.3);
        }
        for (part, rows, columns) in [("q", 24, 12), ("k", 12, 12), ("v", 12, 12), ("o", 12, 24)] {
            held.add(
                &name(&format!("self_attn.{part}_proj")),
                &[rows, columns],
                0.0,
                0.6,
            );
        }
        for norm in ["q_norm", "k_norm"] {
            held.add(&name(&format!("self_attn.{norm}")), &[6], 1.0, 0.4);
        }
        let mut mlp = |start: String, inner: usize| {
            held.add(&name(&format!("{start}gate_proj")), &[inner, 12], 0.0, 0.7);
            held.add(&name(&format!("{start}up_proj")), &[inner, 12], 0.0, 0.7);
            held.add(&name(&format!("{start}down_proj")), &[12, inner], 0.0, 0.7);
        };
        if layer % 2 == 0 {
            mlp("mlp.".into(), 10);
        } else {
            for expert in 0..3 {
                mlp(format!("mlp.experts.{expert}."), 7);
            }
            held.add(&name("mlp.gate"), &[3, 12], 0.0, 0.7);
        }
    }
    held
}

fn prompts() -> Vec<Vec<u32>> {
    let tokens = random(99, 12).into_iter();
    let mut tokens = tokens.map(|x| ((x + 1.0) / 2.0 * VOCABULARY as f32) as u32);
    let lengths = [1, 7, 2, 70];
    lengths
        .map(|length| tokens.by_ref().take(length).collect())
        .into()
}

fn twin(held: &Held) -> Twin<'_> {
    Twin {
        held,
        hidden: 12,
        heads: 4,
        key_heads: 2,
        head_dim: 6,
        layers: 3,
        window: 4,
        theta: 50.0,
        experts: 3,
        per_token: 2,
        eps: 1e-6,
        seen: Default::default(),
    }
}

/// Keeps what enters linear layers.
#[derive(Default, PartialEq, Debug)]
struct Entered {
    inputs: BTreeMap<usize, Vec<f32>>,
    /// The number of the input at which it stops.
    until: Option<usize>,
}

impl InputObserver for Entered {
    type Error = ForwardError;

    fn input(&mut self, number: usize, values: Vec<f32>) -> Result<(), ForwardError> {
        self.inputs.entry(number).or_default().extend(values);
        match self.until == Some(number) {
            true => Err(ForwardError::NoPrompt),
            false => Ok(()),
        }
    }
}

/// Passes what enters all layers to an observer.
fn observe(
    decoder: &Decoder<'_>,
    sequences: &[Vec<u32>],
    threads: usize,
    entered: &mut Entered,
) -> Result<(), ForwardError> {
    let mut passage = decoder.embedded(sequences)?;
    (0..decoder.layers())
        .try_for_each(|layer| decoder.observe_layer(layer, &mut passage, threads, entered))
}

/// All linear layers, those of the last MLP and of each expert among them.
#[test]
fn what_enters_linear_layers_is_what_the_twin_multiplies_them_with() {
    let (config, held, prompts) = (config(), held(), prompts());
    let twin = twin(&held);
    prompts.iter().for_each(|tokens| drop(twin.run(tokens)));
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let inputs = decoder.linear_inputs();
    let mut entered = Entered::default();
    observe(&decoder, &prompts, 2, &mut entered).unwrap();
    let mut seen = twin.seen.take();
    for (number, input) in inputs.iter().enumerate() {
        let found = entered.inputs.get(&number).map_or(&[][..], Vec::as_slice);
        for weight in &input.weights {
            assert_eq!(weight.matrix, None);
            let twin = seen.remove(&weight.tensor).unwrap_or_default().concat();
            assert_eq!(twin.len() % input.features, 0);
            assert_near(found, &twin, 1e-5);
        }
    }
    assert!(seen.is_empty(), "{:?}", seen.keys());
    let shared = |number: usize| inputs[number].weights.len();
    // Queries, keys and values; the output; gate and up; down.
    assert_eq!([0, 1, 2, 3].map(shared), [3, 1, 2, 1]);
    for threads in [1, 5] {
        let mut again = Entered::default();
        observe(&decoder, &prompts, threads, &mut again).unwrap();
        assert_eq!(again, entered);
    }
    let tokens = 80;
    assert_eq!(decoder.passage_bytes(&prompts), tokens * 12 * 4);
    assert!(decoder.layer_bytes(&prompts) > tokens * 12 * 4);
}

/// A layer needs the tensors that it names and no others; running it does to states what observing it does.
#[test]
fn a_layer_needs_its_own_tensors() {
    let (config, held, prompts) = (config(), held(), prompts());
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let mut passage = decoder.embedded(&prompts).unwrap();
    let mut observed = passage.clone();
    let mut all: BTreeSet<&str> = [decoder.embedding_name()].into();
    for layer in 0..decoder.layers() {
        let names = decoder.layer_names(layer);
        assert!(
            names
                .iter()
                .all(|name| name.contains(&format!("layers.{layer}.")))
        );
        all.extend(names);
        decoder.run_layer(layer, &mut passage, 2).unwrap();
        let mut entered = Entered::default();
        decoder
            .observe_layer(layer, &mut observed, 1, &mut entered)
            .unwrap();
        assert_eq!(format!("{passage:?}"), format!("{observed:?}"));
    }
    let tensors = model.tensors().iter().map(|tensor| tensor.name.as_str());
    let left: Vec<&str> = tensors.filter(|name| !all.contains(name)).collect();
    assert_eq!(left, ["lm_head.weight", "model.norm.weight"]);
}

#[test]
fn an_observer_of_inputs_may_stop_and_bad_sequences_are_refused() {
    let (config, held, prompts) = (config(), held(), prompts());
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let mut entered = Entered {
        until: Some(5),
        ..Entered::default()
    };
    let stopped = observe(&decoder, &prompts, 1, &mut entered);
    assert!(matches!(stopped, Err(ForwardError::NoPrompt)));
    assert!(entered.inputs.keys().eq(&[0, 1, 2, 3, 4, 5]));
    let refused = |sequences: &[Vec<u32>]| {
        let refused = observe(&decoder, sequences, 1, &mut Entered::default());
        refused.unwrap_err().to_string()
    };
    assert!(refused(&[]).starts_with("no prompt was given"));
    assert!(refused(&[vec![]]).contains("has no tokens"));
    assert!(refused(&[vec![5, 2100]]).starts_with("token 2100"));
}

#[test]
fn states_logits_and_probabilities_are_those_of_the_twin() {
    let (config, held, prompts) = (config(), held(), prompts());
    let twin = twin(&held);
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let mut kept = Kept::default();
    decoder.run(&prompts, 2, &mut kept, None).unwrap();
    let logits = decoder.logits(&prompts, 2).unwrap();
    let given = decoder.log_probabilities(&prompts, 2).unwrap();
    assert_eq!((decoder.layers(), decoder.hidden_size()), (3, 12));
    assert_eq!((kept.layers.len(), kept.gates.len()), (3, 3));
    for (prompt, (tokens, range)) in prompts.iter().zip(kept.prompts.clone()).enumerate() {
        let (layers, gates) = twin.run(tokens);
        let part = range.start * 12..range.end * 12;
        for layer in 0..3 {
            assert_near(
                &kept.layers[layer][part.clone()],
                &layers[layer].concat(),
                1e-5,
            );
            assert_near(
                &kept.gates[layer][part.clone()],
                &gates[layer].concat(),
                1e-5,
            );
        }
        let all = twin.logits(&layers[3]);
        assert_near(&logits[prompt], all.last().unwrap(), 1e-5);
        let follow = tokens[1..].iter().zip(&all).map(|(&token, logits)| {
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            logits[token as usize] - sum.ln()
        });
        let follow: Vec<f64> = follow.collect();
        let found: Vec<f32> = given[prompt].iter().map(|&one| one as f32).collect();
        assert_near(&found, &follow, 1e-5);
    }
}

#[test]
fn threads_change_no_bit() {
    let (config, held, prompts) = (config(), held(), prompts());
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let run = |threads| {
        let mut kept = Kept::default();
        decoder.run(&prompts, threads, &mut kept, None).unwrap();
        let logits = decoder.logits(&prompts, threads).unwrap();
        let given = decoder.log_probabilities(&prompts, threads).unwrap();
        (kept.layers, kept.gates, logits, given)
    };
    let one = run(1);
    for threads in [0, 2, 5] {
        assert_eq!(one, run(threads));
    }
}

/// The place of the largest logit.
fn likeliest(logits: &[f32]) -> u32 {
    let largest = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).fold(0, largest) as u32
}

/// Prompts and continuations shorter and longer than a block of queries and than the window.
#[test]
fn continuations_of_a_prompt_score_as_whole_prompts_do() {
    let (config, held, prompts) = (config(), held(), prompts());
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let follow = [&prompts[0], &prompts[1], &prompts[2], &prompts[3]].map(Clone::clone);
    let item = |prompt: &Vec<u32>, count: usize| Continued {
        prompt: prompt.clone(),
        continuations: follow[4 - count..].to_vec(),
    };
    let items = [
        item(&prompts[1], 4),
        item(&prompts[3], 4),
        item(&prompts[0], 1),
    ];
    assert_eq!(items[0].tokens(), 7 + 6 + 1 + 69);
    let scores = decoder.score(&items, 2).unwrap();
    assert_eq!(scores, decoder.score(&items, 1).unwrap());
    for (item, scores) in items.iter().zip(&scores) {
        for (tokens, scores) in item.continuations.iter().zip(scores) {
            assert_eq!(tokens.len(), scores.len());
            let whole = [&item.prompt[..], tokens].concat();
            let expected = decoder
                .log_probabilities(std::slice::from_ref(&whole), 1)
                .unwrap()
                .remove(0);
            for (at, score) in scores.iter().enumerate() {
                let end = item.prompt.len() + at;
                assert!((score.log_probability - expected[end - 1]).abs() < 1e-4);
                let logits = decoder.logits(&[whole[..end].to_vec()], 1).unwrap();
                assert_eq!(score.likeliest, likeliest(&logits[0]));
            }
        }
    }
    let error = |prompt: &[u32], token| {
        let item = Continued {
            prompt: prompt.to_vec(),
            continuations: vec![vec![1], vec![token]],
        };
        decoder
            .score(&[items[2].clone(), item], 1)
            .unwrap_err()
            .to_string()
    };
    assert!(error(&[], 1).starts_with("prompt 1 has no tokens"));
    assert!(error(&[1], 2100).starts_with("token 2100 of prompt 1"));
}

/// Ends what follows the first prompt after two tokens.
struct Early;

impl Until for Early {
    fn is_complete(&self, prompt: usize, tokens: &[u32]) -> bool {
        prompt == 0 && tokens.len() == 2
    }
}

#[test]
fn what_is_written_token_by_token_is_the_likeliest_each_time() {
    let (config, held, prompts) = (config(), held(), prompts());
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let written = decoder.generate(&prompts, 5, &Early, 2).unwrap();
    for (number, (prompt, written)) in prompts.iter().zip(&written).enumerate() {
        assert_eq!(written.len(), if number == 0 { 2 } else { 5 });
        let mut whole = prompt.clone();
        for token in written {
            let logits = decoder.logits(std::slice::from_ref(&whole), 1).unwrap();
            assert_eq!(*token, likeliest(&logits[0]), "prompt {number}");
            whole.push(*token);
        }
    }
    let none = decoder.generate(&prompts, 0, &Early, 1).unwrap();
    assert!(none.len() == 4 && none.iter().all(Vec::is_empty));
}

/// Wants no gates.
struct Inputs(Vec<usize>);

impl Observer for Inputs {
    fn layer_input(&mut self, layer: usize, _: &[f32], _: &[Range<usize>]) {
        self.0.push(layer);
    }

    fn gate_input(&mut self, _: usize, _: &[f32], _: &[Range<usize>]) {
        panic!("they are not wanted");
    }

    fn wants_gate_inputs(&self) -> bool {
        false
    }
}

/// Unneeded tensors may hold anything; a head is needed only for logits.
#[test]
fn a_run_ends_where_it_may() {
    let (config, mut held, prompts) = (config(), held(), prompts());
    held.0.remove("lm_head.weight");
    for name in ["self_attn.q_proj", "mlp.gate"] {
        let values = &mut held
            .0
            .get_mut(&format!("model.layers.1.{name}.weight"))
            .unwrap()
            .1;
        values.fill(f32::NAN);
    }
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let mut kept = Kept::default();
    decoder.run(&prompts, 1, &mut kept, Some(0)).unwrap();
    assert_eq!((kept.layers.len(), kept.gates.len()), (1, 1));
    let mut inputs = Inputs(Vec::new());
    decoder.run(&prompts, 1, &mut inputs, Some(1)).unwrap();
    assert_eq!(inputs.0, [0, 1]);
    let error = decoder.run(&prompts, 1, &mut Kept::default(), Some(1));
    assert!(
        matches!(error, Err(ForwardError::NotFinite { .. })),
        "{error:?}"
    );
    let error = decoder.run(&prompts, 1, &mut inputs, Some(3));
    assert!(matches!(
        error,
        Err(ForwardError::Layer {
            asked: 3,
            layers: 3
        })
    ));
    let error = decoder.logits(&prompts, 1);
    assert!(
        matches!(error, Err(ForwardError::Missing { .. })),
        "{error:?}"
    );
}

#[test]
fn prompts_that_can_t_be_run_are_errors() {
    let (config, held) = (config(), held());
    let model = held.model();
    let decoder = Decoder::new(&config, &model).unwrap();
    let message = |prompts: &[Vec<u32>]| {
        let run = decoder.run(prompts, 1, &mut Kept::default(), None);
        let given = decoder.log_probabilities(prompts, 1).unwrap_err();
        assert_eq!(run.unwrap_err().to_string(), given.to_string());
        given.to_string()
    };
    assert!(message(&[]).starts_with("no prompt was given"));
    assert!(message(&[vec![1], vec![]]).starts_with("prompt 1 has no tokens"));
    assert!(
        message(&[vec![5, 2100]]).starts_with("token 2100 of prompt 0: expected one below 2100")
    );
    // A single token has no predecessor, so there is nothing to predict.
    assert_eq!(
        decoder.log_probabilities(&[vec![3]], 1).unwrap(),
        [[0f64; 0]]
    );
}

#[test]
fn a_tied_head_may_be_stored_but_must_be_the_embedding() {
    let (mut config, mut held, prompts) = (config(), held(), prompts());
    config["tie_word_embeddings"] = true.into();
    let differ = Decoder::new(&config, &held.model())
        .unwrap()
        .logits(&prompts, 1);
    assert!(matches!(differ, Err(ForwardError::HeadsDiffer { .. })));
    let embedding = held.0["model.embed_tokens.weight"].clone();
    held.0.insert("lm_head.weight".into(), embedding);
    let stored = Decoder::new(&config, &held.model())
        .unwrap()
        .logits(&prompts, 1)
        .unwrap();
    held.0.remove("lm_head.weight");
    let alone = Decoder::new(&config, &held.model())
        .unwrap()
        .logits(&prompts, 1)
        .unwrap();
    assert_eq!(stored, alone);
}

/// A body that was saved on its own has no prefix.
#[test]
fn names_may_lack_their_prefix() {
    let (config, held, prompts) = (config(), held(), prompts());
    let bare = held.0.iter().map(|(name, tensor)| {
        let bare = name.strip_prefix("model.").unwrap_or(name);
        (bare.to_owned(), tensor.clone())
    });
    let bare = Held(bare.collect());
    let logits = |held: &Held| {
        Decoder::new(&config, &held.model())
            .unwrap()
            .logits(&prompts, 1)
            .unwrap()
    };
    assert_eq!(logits(&bare), logits(&held));
}
