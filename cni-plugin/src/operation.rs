//! Carries an operation out: checks the rest, asks the agent, and decides what its absence means.
//!
//! | agent away | the call |
//! |---|---|
//! | ADD | waits up to 5 s, then fails with code 11 |
//! | DEL | goes to the spool and succeeds |
//! | CHECK, GC | fail with code 11 |
//! | STATUS | succeeds if one was there since the node booted, else fails with code 50 |

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use bulkhead_core::AttachmentId;
use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::{CniCall, Command, Reply, Request, encode};
use rustix::fd::AsFd;
use serde_json::Value;

use crate::agent::{AgentError, Question};
use crate::config::Config;
use crate::environment::Call;
use crate::netns;
use crate::spool;

/// How long an ADD waits for an agent that is away: longer than its restart takes.
const ADD_WAIT: Duration = Duration::from_secs(5);
/// Pause between two attempts to reach it.
const ADD_STEP: Duration = Duration::from_millis(50);

/// How long the answer may take. Runtimes give a sandbox two to four minutes.
const fn patience(command: Command) -> Duration {
    Duration::from_secs(match command {
        Command::Add | Command::Del => 30,
        Command::Gc => 60,
        Command::Check => 10,
        Command::Status => 5,
    })
}

/// Names this run among all runs on the machine.
fn attempt() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// Carries a call out; the answer is none where success has no words.
pub fn carry_out(call: Call, config: Config) -> Result<Option<Value>, Failure> {
    let command = call.command();
    config.check_for(command)?;
    let (pod, path) = match call {
        Call::Add(pod, netns) | Call::Check(pod, netns) => (Some(pod), netns),
        Call::Del(pod, netns) => (Some(pod), netns.unwrap_or_default()),
        Call::Gc | Call::Status => (None, String::new()),
    };
    let netns = match command {
        Command::Add | Command::Check => Some(netns::open(&path).map_err(|error| error.into_failure(&path))?),
        // Whatever is there instead, the pod's netns is gone, and what was in it with it.
        Command::Del if !path.is_empty() => netns::open(&path).ok(),
        Command::Del | Command::Gc | Command::Status => None,
    };
    let dns = config.dns().cloned();
    let (attachment, args) = pod.map_or((None, BTreeMap::new()), |pod| (Some(pod.attachment), pod.args));
    let text = |of: fn(&AttachmentId) -> &str| attachment.as_ref().map(of).unwrap_or_default().to_owned();
    let request = Request::Cni(CniCall {
        command,
        container_id: text(AttachmentId::container_id),
        interface: text(AttachmentId::interface),
        netns: path,
        args,
        config: config.whole,
        attempt: attempt(),
    });
    let frame = encode(&request).map_err(|error| Failure::new(Code::InvalidConfig, error.to_string(), ""))?;
    let netns = netns.as_ref().map(AsFd::as_fd);
    let question = Question { socket: config.socket, frame, netns, patience: patience(command) };
    let reply = match (command, &request, &attachment) {
        (Command::Add, ..) => ask_patiently(&question),
        (Command::Del, Request::Cni(call), Some(attachment)) => {
            ask_or_spool(&question, || spool::write(&config.spool, attachment, call))
        }
        (Command::Status, ..) => ask_leniently(&question),
        _ => question.ask().map_err(|error| error.into_failure(&question.socket, Code::TryAgainLater)),
    }?;
    match (command, reply) {
        (_, Reply::Failed(failure)) => Err(failure),
        (Command::Add, Reply::Attached(made)) => Ok(Some(made.to_json(config.version, dns.as_ref()))),
        (Command::Del | Command::Check | Command::Gc | Command::Status, Reply::Done) => Ok(None),
        _ => Err(Failure::new(Code::Internal, "the agent's answer is to another question", "report this as a defect")),
    }
}

/// ADD: an agent that restarts is waited for. One that dies over the question is asked once more, since an ADD that is
/// repeated converges; not again, since the question may be what kills it.
fn ask_patiently(question: &Question) -> Result<Reply, Failure> {
    let until = Instant::now() + ADD_WAIT;
    let mut died = false;
    loop {
        let error = match question.ask() {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let again = match error {
            AgentError::Away(_) => true,
            AgentError::Closed => !std::mem::replace(&mut died, true),
            _ => false,
        };
        if !again || Instant::now() + ADD_STEP > until {
            return Err(error.into_failure(&question.socket, Code::TryAgainLater));
        }
        sleep(ADD_STEP);
    }
}

/// STATUS: a runtime that hears no makes its node `NotReady`, and Kubernetes moves away pods that run well. So an agent that is
/// gone is no reason for it; what keeps new pods off such a node is its condition `NetworkUnavailable`, and their ADDs wait.
fn ask_leniently(question: &Question) -> Result<Reply, Failure> {
    match question.ask() {
        Err(error) if error.has_left() => Ok(Reply::Done),
        other => other.map_err(|error| error.into_failure(&question.socket, Code::Unavailable)),
    }
}

/// DEL: what no agent takes is written down. The agent is asked again after that, so that one which started between
/// and has drained its spool already still hears of it (`bulkhead_core::spool`).
fn ask_or_spool(
    question: &Question,
    spool: impl FnOnce() -> Result<spool::Spooled, Failure>,
) -> Result<Reply, Failure> {
    match question.ask() {
        Ok(reply) => Ok(reply),
        Err(error) if error.is_absence() => {
            let spooled = spool()?;
            Ok(question.ask().inspect(|_| spooled.take_back()).unwrap_or(Reply::Done))
        }
        Err(error) => Err(error.into_failure(&question.socket, Code::TryAgainLater)),
    }
}
