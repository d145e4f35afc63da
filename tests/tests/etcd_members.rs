//! Three etcd members: one killed, one frozen, the majority lost and back. Traffic notices nothing of any, changes go on
//! while there is a majority.

use std::time::Duration;

use bulkhead_tests::probe::{Proto, await_reaches, await_silence};
use bulkhead_tests::undisturbed::Undisturbed;
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, LabError};

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_member_lost_or_frozen_stops_nobody() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).etcd_members(3).start()?;
    lab.create_tenants(&["a", "b"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "a", "2")?, lab.pod(0, "b", "1")?, lab.pod(1, "b", "2")?];
    let [a1, a2, b1, b2] = [0, 1, 2, 3].map(|index: usize| pods[index].endpoint());
    let flows = Undisturbed::start(&[(a1, a2), (b1, b2)])?;
    let there_and_back = |what: &str| -> Result<(), LabError> {
        println!("{what}");
        wait::until("join", PATIENCE, || lab.bulkhead("tenant join b --to a").ok())?;
        await_reaches(a1, b2, Proto::Tcp, PATIENCE)?;
        await_reaches(a2, b1, Proto::Tcp, PATIENCE)?;
        wait::until("isolate", PATIENCE, || lab.bulkhead("tenant isolate b").ok())?;
        await_silence(a1, b2, Proto::Tcp, PATIENCE)?;
        await_silence(a2, b1, Proto::Tcp, PATIENCE).map(drop)
    };
    there_and_back("all three")?;
    for index in 0..3 {
        lab.etcd().stop_member(index)?;
        there_and_back(&format!("member {index} killed"))?;
        lab.etcd().start_all()?;
    }
    for index in 0..3 {
        let signal = |frozen: bool| {
            let etcd = lab.etcd();
            let member = etcd.member(index).ok_or_else(|| LabError::Broken(format!("no member {index}")))?;
            if frozen { member.freeze() } else { member.thaw() }
        };
        signal(true)?;
        there_and_back(&format!("member {index} frozen"))?;
        signal(false)?;
    }
    println!("the majority lost: pods start as ever; and back");
    lab.etcd().stop_member(0)?;
    lab.etcd().stop_member(1)?;
    let late = lab.pod(1, "a", "late")?;
    await_reaches(late.endpoint(), a1, Proto::Tcp, PATIENCE)?;
    lab.etcd().start_all()?;
    there_and_back("all three again")?;
    flows.expect("etcd members lost and frozen")
}
