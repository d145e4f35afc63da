//! What etcd knows of its members, and what is to be done about it. Pure.
//!
//! Two judges ask: a member that starts ([`start`]) and the setup, which brings etcd's members to those that are wanted
//! ([`next`]). Each step is one change of the membership, and the next one is judged by the list that etcd gives then: both
//! can be ended and begun again at any point.

use super::members::Member;

/// A member as etcd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// etcd's number for it.
    pub id: u64,
    /// Its name; empty for one that was added and has never started.
    pub name: String,
    /// Where the others reach it.
    pub peer_urls: Vec<String>,
    /// Whether it has ever started: it publishes its client URLs then.
    pub started: bool,
    /// Whether it only listens: it counts for no quorum.
    pub learner: bool,
}

impl Listed {
    fn is_at(&self, url: &str) -> bool {
        self.peer_urls.iter().any(|own| own == url)
    }
}

/// Whether the cluster has ever had a quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Age {
    /// It has not: members may bootstrap it.
    New,
    /// It has: its data is with its members, and nobody bootstraps another one.
    Existing,
}

/// How a member without data starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With the others, for the first time.
    Bootstrap,
    /// As the member that etcd waits for; all members, as etcd's `initial-cluster`.
    Join(String),
    /// etcd knows it with data, which is lost: this number has to be removed, and the member added as a new one.
    Renew {
        /// The number.
        id: u64,
        /// Whether it was a learner.
        learner: bool,
    },
    /// Not at all yet.
    Wait(Waiting),
}

/// Why it does not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// Others have the data.
    #[error(
        "this member has no data, and none of the others answers from whom it could fetch it: see to a quorum of them; if their data is lost too: docs/install.md, \"A member is lost\""
    )]
    NobodyAnswers,
    /// The setup adds members.
    #[error(
        "etcd does not have this node among its members (yet); unless a setup is at it, run one: docs/install.md, \"A member is lost\""
    )]
    NoMember,
}

/// How the member at `url` of `node` starts without data. `listed`: what another member says, if one answers.
pub fn start(node: &str, url: &str, age: Age, listed: Option<&[Listed]>) -> Start {
    let Some(listed) = listed else {
        return match age {
            Age::New => Start::Bootstrap,
            Age::Existing => Start::Wait(Waiting::NobodyAnswers),
        };
    };
    match listed.iter().find(|one| one.is_at(url)) {
        None => Start::Wait(Waiting::NoMember),
        Some(own) if own.started => Start::Renew { id: own.id, learner: own.learner },
        Some(own) => {
            let name = |one: &Listed| match one.name.as_str() {
                _ if one.id == own.id => node.to_owned(),
                "" => format!("{:x}", one.id),
                name => name.to_owned(),
            };
            let pairs =
                listed.iter().flat_map(|one| one.peer_urls.iter().map(move |url| format!("{}={url}", name(one))));
            Start::Join(pairs.collect::<Vec<_>>().join(","))
        }
    }
}

/// One change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Forget this one.
    Remove(u64),
    /// The node of this one has another address.
    Move(u64, Member),
    /// Take this one in as a learner, which counts for no quorum before it has the data.
    Add(Member),
    /// Let this one count, as soon as it has the data.
    Promote(u64, Member),
}

/// The next step from what etcd lists to the members that are wanted; none once they are the same.
pub fn next(listed: &[Listed], wanted: &[Member], peer_port: u16) -> Option<Step> {
    let of = |one: &Listed| wanted.iter().find(|member| one.is_at(&member.url(peer_port)));
    let missing = |member: &&Member| !listed.iter().any(|one| one.is_at(&member.url(peer_port)));
    for member in wanted.iter().filter(missing) {
        if let Some(one) = listed.iter().find(|one| one.name == member.node && of(one).is_none()) {
            return Some(Step::Move(one.id, member.clone()));
        }
    }
    let stray = |one: &&Listed| of(one).is_none();
    // A learner in the way of another one first: etcd bears one at a time.
    let strays = listed.iter().filter(stray);
    if let Some(one) = strays.max_by_key(|one| one.learner) {
        return Some(Step::Remove(one.id));
    }
    let learner = listed.iter().find(|one| one.learner).and_then(|one| Some(Step::Promote(one.id, of(one)?.clone())));
    learner.or_else(|| wanted.iter().find(missing).cloned().map(Step::Add))
}

/// Whether etcd keeps a quorum while everything but `wanted` is removed, one by one; `answers`: who of the listed is up.
pub fn bears(listed: &[Listed], wanted: &[Member], peer_port: u16, answers: impl Fn(&Listed) -> bool) -> bool {
    let stays =
        |one: &&Listed| wanted.iter().any(|member| one.is_at(&member.url(peer_port)) || one.name == member.node);
    let voters = || listed.iter().filter(|one| !one.learner);
    let staying = voters().filter(stays).count();
    let up = voters().filter(stays).filter(|one| answers(one)).count();
    // Those that go do not count: the first of them is removed by a quorum of all.
    staying == voters().count() || (up > voters().count() / 2 && up > staying / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 9473;

    fn member(number: u64) -> Member {
        format!("n{number}=10.0.0.{number}").parse().unwrap()
    }

    fn listed(number: u64) -> Listed {
        let (name, peer_urls) = (format!("n{number}"), vec![member(number).url(PORT)]);
        Listed { id: 100 + number, name, peer_urls, started: true, learner: false }
    }

    fn unstarted(number: u64) -> Listed {
        Listed { name: String::new(), started: false, ..listed(number) }
    }

    fn start_of(number: u64, age: Age, listed: Option<&[Listed]>) -> Start {
        start(&format!("n{number}"), &member(number).url(PORT), age, listed)
    }

    #[test]
    fn nobody_bootstraps_a_cluster_that_is_there() {
        assert_eq!(start_of(1, Age::New, None), Start::Bootstrap);
        assert_eq!(start_of(1, Age::Existing, None), Start::Wait(Waiting::NobodyAnswers));
        for age in [Age::New, Age::Existing] {
            let all = [listed(1), listed(2), listed(3)];
            assert_eq!(start_of(1, age, Some(&all)), Start::Renew { id: 101, learner: false });
            assert_eq!(start_of(4, age, Some(&all)), Start::Wait(Waiting::NoMember));
            let added = [unstarted(1), listed(2), unstarted(3)];
            let expected = "n1=https://10.0.0.1:9473,n2=https://10.0.0.2:9473,67=https://10.0.0.3:9473";
            assert_eq!(start_of(1, age, Some(&added)), Start::Join(expected.to_owned()));
        }
    }

    /// Every membership of up to four, every set that is wanted of five, each with any of them down: what is refused is not
    /// begun, and what is begun ends, with a quorum at every step.
    #[test]
    fn steps_end_and_never_lose_the_quorum() {
        let set = |bits: u64| (1..=5).filter(move |number| bits & (1 << (number - 1)) != 0);
        let (mut begun, mut refused) = (0, 0);
        for (now, then, down) in
            (1..16).flat_map(|now| (1..32).flat_map(move |then| (0..32).map(move |down| (now, then, down))))
        {
            let mut all: Vec<Listed> = set(now).map(listed).collect();
            let wanted: Vec<Member> = set(then).map(member).collect();
            let up = |one: &Listed| down & (1 << (one.id - 101)) == 0;
            let quorum = |all: &[Listed]| {
                let voters = || all.iter().filter(|one| !one.learner);
                voters().filter(|one| up(one)).count() > voters().count() / 2
            };
            if !quorum(&all) {
                continue;
            }
            if !bears(&all, &wanted, PORT, up) {
                refused += 1;
                continue;
            }
            begun += 1;
            for steps in 0.. {
                assert!(steps < 20, "{now:b} {then:b} {down:b}: no end");
                match next(&all, &wanted, PORT) {
                    None => break,
                    Some(Step::Remove(id)) => all.retain(|one| one.id != id),
                    Some(Step::Add(member)) => {
                        let number: u64 = member.node[1..].parse().unwrap();
                        assert!(all.iter().all(|one| !one.learner), "one at a time");
                        all.push(Listed { learner: true, ..unstarted(number) });
                    }
                    Some(Step::Promote(id, _)) => {
                        let one = all.iter_mut().find(|one| one.id == id).unwrap();
                        // One that does not come up is never promoted.
                        if !up(one) {
                            break;
                        }
                        *one = listed(id - 100);
                    }
                    Some(Step::Move(..)) => panic!("nothing has moved"),
                }
                assert!(quorum(&all), "{now:b} {then:b} {down:b}: {all:?}");
            }
        }
        assert!(begun > 1000 && refused > 1000, "{begun} {refused}");
    }

    #[test]
    fn a_node_with_another_address_keeps_its_member_and_strays_go_first() {
        let mut all = vec![listed(1), listed(2), listed(3)];
        let moved: Member = "n3=10.0.0.33".parse().unwrap();
        let wanted = [member(1), member(2), moved.clone()];
        assert_eq!(next(&all, &wanted, PORT), Some(Step::Move(103, moved.clone())));
        all[2].peer_urls = vec![moved.url(PORT)];
        assert_eq!(next(&all, &wanted, PORT), None);
        all.push(Listed { learner: true, ..unstarted(4) });
        let another = [member(1), member(2), member(5)];
        assert_eq!(next(&all, &another, PORT), Some(Step::Remove(104)));
        all.pop();
        assert_eq!(next(&all, &another, PORT), Some(Step::Remove(103)));
        all.pop();
        assert_eq!(next(&all, &another, PORT), Some(Step::Add(member(5))));
    }
}
