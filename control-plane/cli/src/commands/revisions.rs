//! `revisions`: what a document was.

use crate::{
    api::{Revision, kind_name},
    args::{Common, Format, Named},
    client::Client,
    failure::Outcome,
    render::{self, Table, time},
    shell::Shell,
};
use serde_json::json;

/// Most revisions that are listed.
const MOST: usize = 1_000;

pub(super) async fn run(client: &Client, common: &Common, named: &Named, shell: &mut Shell) -> Outcome<()> {
    let (project, name) = client.place(&named.name);
    let variables = json!({"kind": kind_name(named.kind), "project": project, "name": name,
        "json": common.output != Format::Table});
    let found: Vec<Revision> = client.list("Revisions", "revisions", variables, MOST).await?;
    if found.is_empty() {
        return Err(client.nothing(named.kind, &named.name));
    }
    render::list(shell, common.output, &found, "", |revisions| {
        let mut table = Table::new(&["REVISION", "CREATED", "BY", "DIGEST"]);
        for r in revisions {
            let digest: String = r.digest.chars().take(12).collect();
            let by = r.created_by.clone().unwrap_or_else(|| "-".to_owned());
            table.row([r.revision.to_string(), time(r.created_at), by, digest]);
        }
        table
    })
}
