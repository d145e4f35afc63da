//! The reference of the reasons for which packets are dropped, made of the agent's own list.

use std::fmt::Write;

/// The page, in Markdown, of reasons and their meanings.
pub fn reference<'a>(reasons: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut page = String::from(
        "# Why packets are dropped\n\n\
         Made of `agent/bpf/reasons.h`; `make reference` makes it anew, and a test keeps it so. Each node counts its own drops: \
         `bulkhead agent status` shows them, and the metric `bulkhead_agent_dropped_packets_total`. The agent's log has some of \
         them with addresses, ports and VNIs (`packet dropped`).\n\n\
         | reason | means |\n|---|---|\n",
    );
    for (reason, meaning) in reasons {
        let _ = writeln!(page, "| `{reason}` | {meaning} |");
    }
    page
}
