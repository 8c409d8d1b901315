//! Answers that the model writes itself, token by token.

use crate::prepare::{Judged, Prepared, PreparedItem};
use crate::scores::ItemScore;
use crate::task::Input;
use forward::{Decoder, ForwardError, Tokenizer, Until};

/// Answers that are being written.
struct Writing<'w> {
    items: Vec<&'w Judged>,
    tokenizer: Option<&'w Tokenizer>,
}

impl Prepared {
    /// Lets the model write the answers of a batch, at most `most` tokens each, and judges what it wrote.
    pub(crate) fn write(
        &self,
        decoder: &Decoder<'_>,
        batch: &[&PreparedItem],
        scores: &mut [ItemScore],
        most: usize,
    ) -> Result<(), ForwardError> {
        let asked = batch
            .iter()
            .zip(scores)
            .filter(|(item, _)| item.is_answer());
        let (items, scores): (Vec<&&PreparedItem>, Vec<&mut ItemScore>) = asked.unzip();
        if items.is_empty() {
            return Ok(());
        }
        let prompts = items.iter().map(|item| item.runs[0].prompt.clone());
        let prompts: Vec<Vec<u32>> = prompts.collect();
        let writing = Writing {
            items: items.iter().map(|item| &item.judged).collect(),
            tokenizer: self.tokenizer.as_deref(),
        };
        let written = decoder.generate(&prompts, most, &writing, self.options.threads)?;
        for ((at, tokens), score) in written.iter().enumerate().zip(scores) {
            let (text, correct) = writing.judge(at, tokens)?;
            score.correct = Some(correct);
            score.written = Some(text);
        }
        Ok(())
    }
}

impl Writing<'_> {
    /// The text of tokens; without a tokenizer, the tokens as a list.
    fn text(&self, tokens: &[u32]) -> Result<String, ForwardError> {
        match self.tokenizer {
            Some(tokenizer) => tokenizer.decode(tokens),
            None => Ok(format!("{tokens:?}")),
        }
    }

    /// What was written up to its end, and whether it is right. What has no end is wrong.
    fn judge(&self, at: usize, tokens: &[u32]) -> Result<(String, bool), ForwardError> {
        let Judged::Answer {
            own_ends,
            stop,
            answers,
            ..
        } = self.items[at]
        else {
            return Ok((String::new(), false));
        };
        let end = tokens.iter().position(|token| own_ends.contains(token));
        let tokens = &tokens[..end.unwrap_or(tokens.len())];
        let mut text = self.text(tokens)?;
        let stopped = stop
            .iter()
            .filter_map(|stop| text.find(stop.as_str()))
            .min();
        if let Some(stopped) = stopped {
            text.truncate(stopped);
        }
        let is = |answer: &Input| match answer {
            Input::Text(answer) => *answer == text,
            Input::Tokens(answer) => stopped.is_none() && answer == tokens,
        };
        let has_end = end.is_some() || stopped.is_some();
        let correct = has_end && answers.iter().any(is);
        Ok((text, correct))
    }
}

impl Until for Writing<'_> {
    fn is_complete(&self, prompt: usize, tokens: &[u32]) -> bool {
        let Judged::Answer { own_ends, stop, .. } = self.items[prompt] else {
            return true;
        };
        if tokens.last().is_some_and(|last| own_ends.contains(last)) {
            return true;
        }
        let has_stop = |text: String| stop.iter().any(|stop| text.contains(stop.as_str()));
        !stop.is_empty() && self.text(tokens).is_ok_and(has_stop)
    }
}

impl PreparedItem {
    fn is_answer(&self) -> bool {
        matches!(self.judged, Judged::Answer { .. })
    }
}
