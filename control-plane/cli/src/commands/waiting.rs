//! What of a cluster waits for a person: how much, and what to type.

use crate::{
    api::{Cluster, Timeline, UnknownCertificate},
    text::line,
};

/// For a cell: `14 deletes, revision 40, 1 certificate`, or `-`.
pub(super) fn short(cluster: &Cluster) -> String {
    let deletes = deletes(cluster).map(|deletes| format!("{deletes} deletes"));
    let timeline = cluster
        .timeline
        .as_ref()
        .map(|t| format!("revision {}", t.cursor));
    let certificates = match cluster.unknown_certificates.len() {
        0 => None,
        1 => Some("1 certificate".to_owned()),
        many => Some(format!("{many} certificates")),
    };
    let waits: Vec<String> = [deletes, timeline, certificates].into_iter().flatten().collect();
    if waits.is_empty() {
        "-".to_owned()
    } else {
        waits.join(", ")
    }
}

/// One sentence for each thing, with what to type.
pub(super) fn notes(cluster: &Cluster) -> Vec<String> {
    let name = &cluster.name;
    let mut notes = Vec::new();
    if let Some(deletes) = deletes(cluster) {
        notes.push(format!(
            "{deletes} deletions wait on {name}, more than its budget: look what is to go, then {}",
            approve(cluster, deletes)
        ));
    }
    if let Some(timeline) = &cluster.timeline {
        notes.push(format!(
            "{}: roadstead describe cluster {name} shows what would change; nothing is sent until a person accepts it",
            ahead(cluster, timeline)
        ));
    }
    for certificate in &cluster.unknown_certificates {
        notes.push(format!(
            "{name} presents a certificate that the hub's database does not know (serial {}): roadstead describe \
             cluster {name}",
            certificate.serial
        ));
    }
    notes
}

/// Everything, for the cluster's page; empty where nothing waits. `changes` says by name which documents change.
pub(super) fn page(cluster: &Cluster, changes: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(deletes) = deletes(cluster) {
        lines.push(format!(
            "{deletes} deletions, more than the cluster's budget; where they are meant:"
        ));
        lines.push(format!("  {}", approve(cluster, deletes)));
    }
    if let Some(timeline) = &cluster.timeline {
        lines.push(format!(
            "{}; nothing is sent until a person accepts the hub's view.",
            ahead(cluster, timeline)
        ));
        if timeline.known {
            lines.push(format!(
                "Accepted, the hub's view goes on over it: {}",
                change(timeline)
            ));
            lines.extend(changes.iter().map(|change| format!("  {change}")));
            lines.push("Where that is right:".to_owned());
            lines.push(format!(
                "  roadstead clusters accept-timeline {} --cursor {}",
                line(&cluster.name),
                timeline.cursor
            ));
        } else {
            lines.push("How it differs is not known until its cluster agent is connected.".to_owned());
        }
    }
    for certificate in &cluster.unknown_certificates {
        lines.extend(unknown(cluster, certificate));
    }
    lines
}

fn unknown(cluster: &Cluster, certificate: &UnknownCertificate) -> [String; 4] {
    use crate::render::time;
    let (name, serial) = (line(&cluster.name), line(&certificate.serial));
    [
        format!(
            "Certificate {serial}, of the hub's own authority and not in its database; first seen {}, ends {}.",
            time(certificate.seen_at),
            time(certificate.expires_at)
        ),
        "Where it is the cluster's own (roadstead-agent doctor there names its serial), else revoke it:"
            .to_owned(),
        format!("  roadstead clusters admit-certificate {name} --serial {serial}"),
        format!("  roadstead clusters revoke {name} --serial {serial}"),
    ]
}

/// What accepting a timeline does, in numbers.
pub(super) fn change(timeline: &Timeline) -> String {
    let documents = |n: u64| {
        if n == 1 {
            "1 document is".to_owned()
        } else {
            format!("{n} documents are")
        }
    };
    format!(
        "{} sent, {} deleted, {} replaced",
        documents(timeline.sent),
        timeline.deletes,
        timeline.replaced.len()
    )
}

fn ahead(cluster: &Cluster, timeline: &Timeline) -> String {
    format!(
        "{} is at revision {}, and the hub's database, which is of an older time, at {}",
        cluster.name, timeline.cursor, cluster.wanted_revision
    )
}

fn approve(cluster: &Cluster, deletes: u64) -> String {
    format!(
        "roadstead clusters approve-deletes {} --deletes {deletes}",
        cluster.name
    )
}

fn deletes(cluster: &Cluster) -> Option<u64> {
    cluster.held_deletes.filter(|deletes| *deletes > 0)
}
