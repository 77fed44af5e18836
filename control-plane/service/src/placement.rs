//! Which documents belong on which cluster, and what a write changes there.
//!
//! The documents of a cluster are the agents placed on it and everything that they refer to, and on: an agent that
//! another one uses as a tool runs wherever that one runs. [`wanted`] is that rule as a pure function; [`difference`]
//! compares it with what the rows say. Both are computed in the transaction of the write, under the tenant's lock.
//! A write that leaves placement and references as they were changes rows of its own object alone, and skips both.

use roadstead_contract::documents::{Kind, Placement};
use roadstead_domain::{ClusterId, Error, ObjectId, ProjectId};
use roadstead_store::{Cluster, DesiredRow, Node, Object, Tx, Wanted};
use std::collections::{BTreeMap, BTreeSet};

/// A cluster with this label set to `true` runs the tenant's agents that say nothing of placement. Without such a
/// cluster they run nowhere.
pub const DEFAULT_CLUSTER: &str = "roadstead.dev/default";

/// Whether an agent with this placement runs on the cluster.
pub(crate) fn fits(placement: &Placement, name: &str, labels: &BTreeMap<String, String>) -> bool {
    if placement.is_empty() {
        return labels.get(DEFAULT_CLUSTER).is_some_and(|value| value == "true");
    }
    let named = placement.clusters.iter().any(|wanted| wanted.as_str() == name);
    let selected = placement.selector.as_ref().is_some_and(|selector| {
        selector
            .match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    });
    named || selected
}

/// For each cluster the objects that belong there.
pub(crate) fn wanted<'a>(
    nodes: &'a [Node],
    clusters: &[Cluster],
) -> BTreeMap<ClusterId, BTreeMap<ObjectId, &'a Node>> {
    let names: BTreeMap<(ProjectId, Kind, &str), &Node> = nodes
        .iter()
        .map(|n| ((n.project, n.id.kind(), n.name.as_str()), n))
        .collect();
    let mut sets = BTreeMap::new();
    for cluster in clusters {
        let placed = |n: &&Node| {
            n.id.kind() == Kind::Agent && fits(&n.links.placement, &cluster.name, &cluster.labels)
        };
        let mut open: Vec<&Node> = nodes.iter().filter(placed).collect();
        let mut set = BTreeMap::new();
        while let Some(node) = open.pop() {
            if set.insert(node.id, node).is_some() {
                continue;
            }
            let refers = node.links.refers.iter();
            open.extend(refers.filter_map(|(kind, name)| names.get(&(node.project, *kind, name.as_str()))));
        }
        sets.insert(cluster.id, set);
    }
    sets
}

/// What one cluster's rows have to change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) gone: Vec<ObjectId>,
}

/// The changes that make the live rows into what is wanted.
pub(crate) fn difference(
    wanted: &BTreeMap<ClusterId, BTreeMap<ObjectId, &Node>>,
    rows: &[DesiredRow],
) -> BTreeMap<ClusterId, Changes> {
    let mut changes: BTreeMap<ClusterId, Changes> = BTreeMap::new();
    let mut kept: BTreeSet<(ClusterId, ObjectId)> = BTreeSet::new();
    for row in rows {
        match wanted.get(&row.cluster).and_then(|set| set.get(&row.object)) {
            None => changes.entry(row.cluster).or_default().gone.push(row.object),
            Some(node) if node.revision == row.generation => {
                kept.insert((row.cluster, row.object));
            }
            Some(_) => {}
        }
    }
    for (cluster, set) in wanted {
        for (object, node) in set {
            if !kept.contains(&(*cluster, *object)) {
                changes
                    .entry(*cluster)
                    .or_default()
                    .wanted
                    .push(Wanted::from(*node));
            }
        }
    }
    changes
}

/// Brings the desired sets up to date, for the objects of one project or of all.
pub(crate) async fn recompute(tx: &mut Tx<'_>, project: Option<ProjectId>) -> Result<(), Error> {
    let nodes = tx.graph(project).await?;
    let clusters = tx.all_clusters().await?;
    let rows = tx.desired_of_project(project).await?;
    for (cluster, changes) in difference(&wanted(&nodes, &clusters), &rows) {
        tx.change_desired(cluster, &changes.wanted, &changes.gone).await?;
    }
    Ok(())
}

/// Gives the clusters that hold these objects their new generation; which clusters hold them has not changed.
pub(crate) async fn refresh(tx: &mut Tx<'_>, objects: &[Object]) -> Result<(), Error> {
    if let [object] = objects {
        return tx.refresh_desired(object).await;
    }
    let mut changes: BTreeMap<ClusterId, Vec<Wanted>> = BTreeMap::new();
    for object in objects {
        for row in tx.desired_of_object(object.id).await? {
            if !row.deleted {
                changes.entry(row.cluster).or_default().push(Wanted::from(object));
            }
        }
    }
    for (cluster, wanted) in changes {
        tx.change_desired(cluster, &wanted, &[]).await?;
    }
    Ok(())
}
