//! `projects`: the parts of a tenant.

use super::{idempotency_key, secret::neither_yes_nor_no};
use crate::{
    api::{Project, ProjectPayload},
    args::{Common, Format, Projects, ProjectsCommand},
    client::{Client, error_line},
    failure::Outcome,
    render::{self, Table, age},
    shell::Shell,
};
use roadstead_contract::documents::Name;
use serde_json::json;

/// Most projects that are listed.
const MOST: usize = 10_000;

pub(super) async fn run(client: &Client, common: &Common, args: Projects, shell: &mut Shell) -> Outcome<()> {
    match args.command {
        None | Some(ProjectsCommand::List) => list(client, common, shell).await,
        Some(ProjectsCommand::Create { name }) => create(client, common, &name, shell).await,
    }
}

async fn list(client: &Client, common: &Common, shell: &mut Shell) -> Outcome<()> {
    let projects: Vec<Project> = client.list("Projects", "projects", json!({}), MOST).await?;
    let now = (shell.now)();
    let nothing = "no projects that you may see";
    render::list(shell, common.output, &projects, nothing, |projects| {
        let mut table = Table::new(&["NAME", "CREATED"]);
        for project in projects {
            let created = format!("{} ago", age(now, project.created_at));
            table.row([project.name.clone(), created]);
        }
        table
    })
}

async fn create(client: &Client, common: &Common, name: &Name, shell: &mut Shell) -> Outcome<()> {
    let input = json!({"name": name, "idempotencyKey": idempotency_key()});
    let payload: ProjectPayload = client
        .call("CreateProject", "createProject", json!({"input": input}))
        .await?;
    let what = format!("the project {name} was not made");
    if let Some(failure) = client.user_errors(&payload.errors, &what, error_line) {
        return Err(failure);
    }
    let project = payload.object.ok_or_else(neither_yes_nor_no)?;
    if common.output != Format::Table {
        return render::value(shell, common.output, &project);
    }
    shell.say(&format!("project {name} made\n"))
}
