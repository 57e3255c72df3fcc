//! The handlers' side of the engine: what can be asked of it, and a request in flight.

use kvwarden_policy::simulation::engine::{FinishReason, Prompt};
use tokio::sync::{mpsc, oneshot, watch};

use super::{error::ApiError, memory::SleepLevel};

/// Everything the engine can be asked.
///
/// The channel has no bound of its own: each command belongs to an open connection, and the server
/// bounds those.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Submission),
    /// The client is gone or has everything; unknown ids are fine.
    Abort(u64),
    Control(Control, oneshot::Sender<Answer>),
}

/// One HTTP request: several sequences if it has several prompts or wants several choices.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) id: u64,
    pub(super) priority: i32,
    pub(super) choices: Vec<Choice>,
    pub(super) progress: watch::Sender<Progress>,
}

#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) prompt: Prompt,
    pub(super) max_tokens: u32,
    /// Tokens after which the model stops by itself.
    pub(super) limit: u32,
}

/// How far a request is, one entry per choice.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) choices: Vec<ChoiceProgress>,
    /// It is computed with weights that were never loaded after a deep sleep.
    pub(super) garbled: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChoiceProgress {
    pub(super) generated: u32,
    pub(super) cached_tokens: u32,
    pub(super) end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Finished(FinishReason),
    Aborted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Quiesce(Quiet, InFlight),
    Wake {
        weights: bool,
        kv: bool,
    },
    Resume,
    ReleaseKv,
    ReloadWeights,
    ResetPrefixCache,
    /// End all requests; the process is about to exit.
    Shutdown,
}

/// Why the engine stops working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    Pause,
    Sleep(SleepLevel),
}

/// What becomes of requests in flight then: vLLM's `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InFlight {
    Abort,
    Wait,
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// It can't be done now.
    Busy,
}

/// Where handlers send commands.
#[derive(Clone, Debug)]
pub(super) struct Handle(mpsc::UnboundedSender<Command>);

/// A request in flight. Dropping it aborts it, so a client that hangs up needs no code.
#[derive(Debug)]
pub(super) struct InFlightRequest {
    id: u64,
    handle: Handle,
    progress: watch::Receiver<Progress>,
}

// === impl End ===

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Stop) => "stop",
            Self::Finished(FinishReason::Length) => "length",
            Self::Aborted => "abort",
        }
    }
}

// === impl Handle ===

impl Handle {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// `id` must never have been used before.
    pub(super) fn submit(&self, id: u64, priority: i32, choices: Vec<Choice>) -> InFlightRequest {
        let (sender, progress) = watch::channel(Progress {
            choices: vec![ChoiceProgress::default(); choices.len()],
            garbled: false,
        });
        self.send(Command::Submit(Submission {
            id,
            priority,
            choices,
            progress: sender,
        }));
        InFlightRequest {
            id,
            handle: self.clone(),
            progress,
        }
    }

    pub(super) async fn control(&self, control: Control) -> Result<Answer, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Control(control, reply));
        answer.await.map_err(|_| ApiError::EngineGone)
    }

    fn send(&self, command: Command) {
        // A dead engine shows as a dropped reply or progress sender, where someone waits for it.
        drop(self.0.send(command));
    }
}

// === impl InFlightRequest ===

impl InFlightRequest {
    /// The newest state, once it differs from what was seen last.
    pub(super) async fn advance(&mut self) -> Result<Progress, ApiError> {
        self.progress
            .changed()
            .await
            .map_err(|_| ApiError::EngineGone)?;
        Ok(self.progress.borrow_and_update().clone())
    }

    /// The last state.
    pub(super) async fn end(&mut self) -> Result<Progress, ApiError> {
        let done = |progress: &Progress| progress.choices.iter().all(|c| c.end.is_some());
        let last = self.progress.wait_for(done).await;
        last.map(|progress| progress.clone())
            .map_err(|_| ApiError::EngineGone)
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.handle.send(Command::Abort(self.id));
    }
}
