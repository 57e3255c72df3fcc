//! One small request, to see how a server counts.

use std::{rc::Rc, time::Duration};

use anyhow::Context as _;

use super::{
    SplitMix,
    client::{Target, Tenant, Trace},
    plan::Shot,
    prompt::Prompts,
};

/// Prompt tokens that the server counts for this many words, or for a prompt of this many tokens
/// once that is known.
///
/// # Errors
/// When no answer with usage comes.
pub async fn probe(target: &Rc<Target>, prompts: Prompts, words: u32) -> anyhow::Result<u64> {
    let tenant = Tenant::new(target.clone(), "quiet");
    let shot = Shot {
        at: Duration::ZERO,
        prompt_tokens: words,
        output_tokens: 2,
    };
    let text = prompts.make(words, &mut SplitMix::named(u64::from(words), "probe"));
    let mut trace = Trace::default();
    let outcome = tenant.exchange(target.body(&text, &shot), &mut trace).await;
    let usage = trace.usage;
    usage
        .map(|usage| usage.prompt_tokens)
        .with_context(|| format!("a probe got no answer with usage: {outcome:?}"))
}
