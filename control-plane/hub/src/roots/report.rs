//! What an operator is shown of a rotation.

use super::tenants::Left;
use anyhow::{Context as _, ensure};
use roadstead_fleet::roots::{Phase, REPLICA_ENDED, Ring, Root, Step};
use roadstead_service::roots::Holders;

/// Names that are listed; their number is said in any case.
const LISTED: usize = 50;
/// A root that ends sooner is to be rotated: every cluster has to follow.
const ROOT_ENDS_SOON: i64 = 90;

const HOUR_MS: i64 = 3_600_000;

/// After a step: what is true now, and what comes next.
#[expect(clippy::print_stdout, reason = "the output of this command")]
pub(super) fn done(step: &Step, holders: &Holders, now_ms: i64) {
    println!("generation {}: {}", step.ring.generation, step.ring.describe());
    if !step.behind.is_empty() {
        println!(
            "left behind: {} of {} clusters",
            step.behind.len(),
            holders.clusters.len()
        );
        lines(&step.behind);
    }
    let others = step.ring.other_replicas(holders, now_ms);
    if !others.is_empty() {
        println!("replicas that have yet to follow, within seconds once their folder of keys has it:");
        lines(&others);
    }
    println!("next: {}", next(&step.ring));
}

/// What may take a minute begins.
#[expect(clippy::print_stdout, reason = "the output of this command")]
pub(super) fn kept() {
    println!("the new roots count; unused join tokens end in all tenants");
}

/// What an operator does about join tokens that may still be good.
pub(super) fn unended(left: Left) -> anyhow::Error {
    let whose = match left.tenants.len() {
        0 => "in some tenant".to_owned(),
        number => format!("of {number} tenants ({})", short(&left.tenants)),
    };
    let advice = format!(
        "unused join tokens {whose} may still be good, and whoever has read one can join with it, within an hour after it \
         was made. Once the database answers, and before a cluster joins anew, run `roadstead-hub roots retire --now` once \
         more (without --keep-new, with the same --cut-off): here that is allowed; it makes one more root and ends them"
    );
    anyhow::Error::new(left.why).context(advice)
}

/// How many join tokens ended with a step.
#[expect(clippy::print_stdout, reason = "the output of this command")]
pub(super) fn tokens(ended: u64) {
    println!("unused join tokens that end: {ended}");
}

#[expect(clippy::print_stderr, reason = "the output of this command")]
pub(super) fn untidy(error: &std::io::Error) {
    eprintln!("what a step before has left behind cannot be tidied up: {error}");
}

/// Everything.
#[expect(clippy::print_stdout, reason = "the output of this command")]
pub(super) fn list(ring: &Ring, holders: &Holders, now_ms: i64) {
    println!("generation {}: {}", ring.generation, ring.describe());
    for root in ring.trusted() {
        let left = time_left(root, now_ms).unwrap_or_else(|error| error.to_string());
        println!("root {} ({left})", root.id());
    }
    for retired in &ring.retired {
        let why = if retired.compromised {
            "compromised"
        } else {
            "retired"
        };
        println!("{why} {}", retired.root.id());
    }
    println!("replicas: {}", replicas(holders, now_ms));
    lines(&ring.other_replicas(holders, now_ms));
    for (what, found) in progress(ring, holders) {
        println!("{what}: {found}");
    }
    println!("certificates of clusters: {}", ages(holders, now_ms));
    println!("next: {}", next(ring));
}

#[expect(clippy::print_stdout, reason = "the output of this command")]
fn lines(names: &[String]) {
    for name in names.iter().take(LISTED) {
        println!("  {name}");
    }
    if names.len() > LISTED {
        println!("  … and {} more", names.len() - LISTED);
    }
}

fn next(ring: &Ring) -> &'static str {
    match (&ring.phase, ring.generation) {
        (Phase::One { .. }, 0) => "nothing; `roots add` begins a rotation",
        (Phase::One { .. }, _) => "nothing; back up the folder of keys",
        (Phase::Announced { .. }, _) => {
            "back up the folder of keys; `roots switch` once every cluster keeps this bundle, or `roots abort`"
        }
        (Phase::Switched { .. }, _) => "`roots retire` once no cluster depends on the old root",
    }
}

/// How far a rotation is, one line for each question.
pub(crate) fn progress(ring: &Ring, holders: &Holders) -> Vec<(&'static str, String)> {
    let all = holders.clusters.len();
    let mut lines = Vec::new();
    let of = |waiting: Vec<String>| match waiting.is_empty() {
        true => format!("all {all}"),
        false => format!("{} of {all}; not {}", all - waiting.len(), short(&waiting)),
    };
    if ring.generation > 0 {
        lines.push(("clusters that keep these roots", of(ring.without_bundle(holders))));
    }
    if ring.previous().is_some() {
        lines.push((
            "clusters that do without the old root",
            of(ring.dependent(holders)),
        ));
    }
    lines
}

fn short(names: &[String]) -> String {
    let mut text = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join("; ");
    if names.len() > LISTED {
        text.push_str(&format!("; … and {} more", names.len() - LISTED));
    }
    text
}

/// How many replicas live.
pub(crate) fn replicas(holders: &Holders, now_ms: i64) -> String {
    let ended = i64::try_from(REPLICA_ENDED.as_millis()).unwrap_or(i64::MAX);
    let live = holders
        .replicas
        .iter()
        .filter(|replica| now_ms.saturating_sub(replica.seen_ms) <= ended);
    match live.count() {
        0 => "none runs".to_owned(),
        n => format!("{n} heard within {} s", REPLICA_ENDED.as_secs()),
    }
}

/// How old the clusters' certificates are.
pub(crate) fn ages(holders: &Holders, now_ms: i64) -> String {
    let clusters = holders.clusters.iter();
    let oldest = clusters.clone().map(|(_, cluster)| cluster.issued_ms).min();
    let first = clusters.min_by_key(|(_, cluster)| cluster.not_after_ms);
    match (oldest, first) {
        (Some(oldest), Some((tenant, cluster))) => format!(
            "{} clusters have one; the oldest was issued {} h ago, the first ends in {} h ({tenant}/{})",
            holders.clusters.len(),
            now_ms.saturating_sub(oldest) / HOUR_MS,
            cluster.not_after_ms.saturating_sub(now_ms) / HOUR_MS,
            cluster.name
        ),
        _ => "no cluster has one that is good now".to_owned(),
    }
}

/// How long a root is good.
///
/// # Errors
/// When it must be rotated now.
pub(crate) fn time_left(root: &Root, now_ms: i64) -> anyhow::Result<String> {
    let end = root.not_after().context("not a certificate")?;
    let days = end.saturating_mul(1_000).saturating_sub(now_ms) / (24 * HOUR_MS);
    ensure!(
        days > ROOT_ENDS_SOON,
        "root {} ends in {days} days: rotate it (roadstead-hub roots add)",
        root.id().short()
    );
    Ok(format!("good for {days} days"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_domain::{ClusterId, FakeClock, OsRandom, SeededRandom, SystemClock};
    use roadstead_fleet::Authority;
    use roadstead_store::ClusterTrust;

    fn root() -> Root {
        Authority::generate_root("test", &SystemClock, &OsRandom)
            .unwrap()
            .0
    }

    #[test]
    fn progress_says_how_many_and_who_not() {
        let cluster = |n: u64, generation: u64| {
            let trust = ClusterTrust {
                id: ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(n)),
                name: format!("c{n}"),
                generation,
                root: String::new(),
                issued_ms: 0,
                not_after_ms: 4 * HOUR_MS,
            };
            ("acme".to_owned(), trust)
        };
        let mut holders = Holders::default();
        let one = Ring::first(root());
        assert!(progress(&one, &holders).is_empty());
        holders.clusters = vec![cluster(1, 1), cluster(2, 0)];
        let ring = one.add(root()).unwrap().ring;
        let lines = progress(&ring, &holders);
        assert!(lines[0].1.starts_with("1 of 2; not acme/c2: "), "{lines:?}");
        let found = ages(&holders, HOUR_MS);
        assert_eq!(
            found,
            "2 clusters have one; the oldest was issued 1 h ago, the first ends in 3 h (acme/c1)"
        );
    }

    #[test]
    fn a_root_that_ends_soon_is_said() {
        let root = root();
        let end = root.not_after().unwrap() * 1_000;
        assert!(time_left(&root, end - 100 * 24 * HOUR_MS).is_ok());
        let error = time_left(&root, end - 80 * 24 * HOUR_MS).unwrap_err().to_string();
        assert!(error.contains("ends in 80 days"), "{error}");
    }
}
