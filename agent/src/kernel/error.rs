//! What may go wrong between the agent and the kernel's netlink, told with the operation, the errno and the kernel's own words.

use rustix::io::Errno;

/// A failed exchange with the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The kernel refused the operation.
    #[error("{operation}: {errno}{}{}", kernel_words(.text.as_deref()), advice(*.errno))]
    Refused {
        /// What was asked for, with its device or route.
        operation: String,
        /// The kernel's answer.
        errno: Errno,
        /// The kernel's explanation, where it gave one (extended ACK).
        text: Option<String>,
    },
    /// The socket itself failed: it could not be made, written or read.
    #[error("{operation}: the netlink socket failed: {source}{}", advice(*.source))]
    Socket {
        /// What was being done.
        operation: String,
        /// The socket's error.
        source: Errno,
    },
    /// The kernel dropped its answers (the receive buffer ran over) or gave none in time: what was asked may or may not have been
    /// done. Read the state back before going on.
    #[error(
        "{operation}: the kernel's answer was lost; whether it was done is unknown, read the state back and try again"
    )]
    Unanswered {
        /// What was asked for.
        operation: String,
    },
    /// An answer that is not well-formed netlink.
    #[error(
        "{operation}: the kernel's answer cannot be read ({detail}); this kernel may be newer than the agent knows"
    )]
    Malformed {
        /// What was asked for.
        operation: String,
        /// What was wrong with the answer.
        detail: &'static str,
    },
    /// A listing changed under our hands on every try.
    #[error("{operation}: the listing changed during each of {tries} tries; try again when fewer changes are going on")]
    Unsettled {
        /// What was listed.
        operation: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The thread that was to open a socket in another network namespace could not do so.
    #[error("{operation}: cannot enter the network namespace: {source}{}", advice(*.source))]
    Enter {
        /// What was being done.
        operation: String,
        /// Why `setns` failed; `EINVAL` means that the file is no network namespace.
        source: Errno,
    },
    /// A short-lived thread could not be started or did not finish.
    #[error("{operation}: a helper thread failed: {detail}; check the limits on threads and memory")]
    Thread {
        /// What was being done.
        operation: String,
        /// What happened to the thread.
        detail: String,
    },
}

impl KernelError {
    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { source, .. } | Self::Enter { source, .. } => Some(*source),
            Self::Unanswered { .. } | Self::Malformed { .. } | Self::Unsettled { .. } | Self::Thread { .. } => None,
        }
    }

    /// Whether the thing that was asked about is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { errno, .. } if super::op::ABSENT.contains(errno))
    }
}

/// A batch of which at least one operation was not done. Those after it were tried all the same (see [`super::Netlink::batch`]).
#[derive(Debug, thiserror::Error)]
#[error("operation {} of {of} failed{}: {source}", .index + 1, also(*.further))]
pub struct BatchError {
    /// The first operation that failed, counted from 0 in the order they were given.
    pub index: usize,
    /// How many operations the batch had.
    pub of: usize,
    /// How many operations after `index` failed or were not answered too.
    pub further: usize,
    /// Why the first one failed.
    pub source: KernelError,
}

fn also(further: usize) -> String {
    if further == 0 { String::new() } else { format!(" (and {further} after it)") }
}

fn kernel_words(text: Option<&str>) -> String {
    text.map(|text| format!(": {text}")).unwrap_or_default()
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "; the agent needs CAP_NET_ADMIN and CAP_SYS_ADMIN",
        Errno::OPNOTSUPP | Errno::AFNOSUPPORT => {
            "; the kernel lacks the feature: check for the modules veth, vxlan, sch_tbf, sch_ingress and cls_bpf, and whether IPv6 is enabled"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_error_names_operation_errno_and_the_kernels_words() {
        let source = KernelError::Refused {
            operation: "create veth a with peer b".into(),
            errno: Errno::EXIST,
            text: Some("Peer exists".into()),
        };
        let error = BatchError { index: 1, of: 5, further: 2, source };
        let text = error.to_string();
        assert!(
            text.starts_with("operation 2 of 5 failed (and 2 after it): create veth a with peer b: File exists"),
            "{text}"
        );
        assert!(text.ends_with("Peer exists"), "{text}");
    }

    #[test]
    fn a_missing_right_is_named() {
        let error = KernelError::Refused { operation: "set link 3 up".into(), errno: Errno::PERM, text: None };
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
    }
}
