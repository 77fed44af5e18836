//! How a session resumes (protocol.md §3 rules 2 and 11): pure, from what both sides say.

use crate::store::{Begun, Hello};
use roadstead_contract::fleet::Digest;

/// How a session goes on from its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    Delta,
    Diff,
    Snapshot,
    /// Nothing is sent; the reason is for people.
    Hold(String),
    /// As `Hold`, since the cursor is beyond the revision: the database is of an older time.
    Behind(String),
}

/// `desired_root` is the root over the desired set, asked only of a cursor that is at its revision.
pub(crate) fn resume(
    hub_version: &str,
    hello: &Hello,
    state_root: &[u8],
    begun: &Begun,
    desired_root: Option<Digest>,
    held: bool,
) -> Resume {
    if let Some(reason) = skew(hub_version, &hello.version) {
        return Resume::Hold(reason);
    }
    // An empty inbox has nothing to lose: it is ahead of nobody.
    if hello.cursor > begun.revision || (begun.frozen && hello.cursor > 0) {
        return Resume::Behind(format!(
            "the cluster is at revision {}, the hub at {}: the hub's database is of an older time; a person decides",
            hello.cursor, begun.revision
        ));
    }
    let known = begun.previous_incarnation.as_deref() == Some(hello.incarnation.as_str());
    let approved = held && begun.approved_deletes > 0;
    if hello.cursor == 0 || !known || hello.cursor < begun.tombstone_floor || approved {
        return Resume::Snapshot;
    }
    // Held deletions are a difference that both sides know of.
    match desired_root {
        Some(root) if root.0 != state_root && !held => Resume::Diff,
        _ => Resume::Delta,
    }
}

/// Why a cluster agent of this version is quarantined: the hub serves its own version and the two minor ones before.
/// Versions that do not parse are of builds between releases and are served.
fn skew(hub: &str, cluster: &str) -> Option<String> {
    let ((major, minor), (other_major, other_minor)) = (parse(hub)?, parse(cluster)?);
    let served = major == other_major && (minor.saturating_sub(2)..=minor).contains(&other_minor);
    (!served).then(|| {
        let oldest = minor.saturating_sub(2);
        format!("expected a cluster agent of version {major}.{oldest} to {major}.{minor}, found {cluster}: upgrade it")
    })
}

fn parse(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Digest = Digest([7; 32]);

    fn hello(cursor: u64) -> Hello {
        Hello {
            version: "0.1.0".to_owned(),
            instance: "i".to_owned(),
            incarnation: "known".to_owned(),
            cursor,
            capabilities: Vec::new(),
        }
    }

    fn begun() -> Begun {
        Begun {
            epoch: 2,
            revision: 10,
            tombstone_floor: 4,
            previous_incarnation: Some("known".to_owned()),
            approved_deletes: 0,
            held: false,
            frozen: false,
            commands: false,
        }
    }

    fn at(cursor: u64, begun: &Begun) -> Resume {
        resume("0.1.0", &hello(cursor), &ROOT.0, begun, Some(ROOT), false)
    }

    #[test]
    fn a_known_cursor_at_or_above_the_floor_resumes_by_delta() {
        assert_eq!(
            [at(4, &begun()), at(10, &begun())],
            [Resume::Delta, Resume::Delta]
        );
    }

    #[test]
    fn an_empty_a_wiped_and_an_old_inbox_get_a_snapshot() {
        assert_eq!(
            [at(0, &begun()), at(3, &begun())],
            [Resume::Snapshot, Resume::Snapshot]
        );
        let wiped = Begun {
            previous_incarnation: Some("other".to_owned()),
            ..begun()
        };
        assert_eq!(at(10, &wiped), Resume::Snapshot);
    }

    #[test]
    fn a_different_root_at_the_same_revision_is_looked_into() {
        let other = Some(Digest([8; 32]));
        let asked = |held| resume("0.1.0", &hello(10), &ROOT.0, &begun(), other, held);
        assert_eq!([asked(false), asked(true)], [Resume::Diff, Resume::Delta]);
    }

    #[test]
    fn a_cursor_beyond_the_revision_freezes_everything() {
        assert!(matches!(at(11, &begun()), Resume::Behind(_)));
    }

    #[test]
    fn what_is_frozen_thaws_by_a_person_or_with_a_new_inbox_alone() {
        let frozen = Begun {
            frozen: true,
            ..begun()
        };
        assert!(matches!(at(10, &frozen), Resume::Behind(_)));
        assert_eq!(at(0, &frozen), Resume::Snapshot);
    }

    #[test]
    fn approved_deletions_are_carried_out_by_a_snapshot() {
        let approved = Begun {
            approved_deletes: 9,
            ..begun()
        };
        assert_eq!(
            resume("0.1.0", &hello(10), &ROOT.0, &approved, Some(ROOT), true),
            Resume::Snapshot
        );
    }

    #[test]
    fn versions_too_far_apart_are_held() {
        let held = |hub, cluster| skew(hub, cluster).is_some();
        assert!(!held("1.5.0", "1.3.9") && !held("1.5.0", "1.5.2") && !held("1.5.0", "dev"));
        assert!(held("1.5.0", "1.2.0") && held("1.5.0", "1.6.0") && held("2.0.0", "1.9.0"));
    }
}
