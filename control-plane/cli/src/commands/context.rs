//! `context`: which servers are known, and which is current.

use crate::{
    args::{Common, ContextAdd, ContextCommand, Format},
    client::Client,
    config::{self, Config, Context},
    failure::{Exit, Failure, Outcome},
    render::{self, Table},
    shell::Shell,
};
use secrecy::SecretString;
use serde_json::json;
use std::io::Write as _;

/// Longest token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

pub(super) fn run(command: Option<ContextCommand>, common: &Common, shell: &mut Shell) -> Outcome<()> {
    let path = config::path(shell)?;
    let mut config = Config::load(&path)?;
    match command {
        None | Some(ContextCommand::List) => return list(&config, common, shell),
        Some(ContextCommand::Use { name }) => {
            config.context(Some(&name), &path)?;
            config.current = Some(name);
        }
        Some(ContextCommand::Remove { name }) => {
            config.context(Some(&name), &path)?;
            config.contexts.retain(|c| c.name != name);
            config.current = config.current.filter(|current| *current != name);
        }
        Some(ContextCommand::Add(add)) => {
            let context = new(add, common, shell)?;
            config.contexts.retain(|c| c.name != context.name);
            config.current.get_or_insert_with(|| context.name.clone());
            config.contexts.push(context);
        }
    }
    config.save(&path)
}

fn new(add: ContextAdd, common: &Common, shell: &mut Shell) -> Outcome<Context> {
    let token = match &add.token_file {
        Some(_) => None,
        None => {
            if shell.input.is_terminal() {
                writeln!(
                    shell.err,
                    "paste the token and end with Ctrl-D (it will be seen on the screen):"
                )?;
            }
            let text = shell
                .input
                .all(MAX_TOKEN)
                .map_err(|_| Failure::new(Exit::Usage, "no token can be read"))?;
            Some(SecretString::from(text.trim()))
        }
    };
    // Read at each use, from wherever the command is started.
    let token_file = add
        .token_file
        .map(|file| std::path::absolute(&file))
        .transpose()?;
    let project = common.project.clone().map_or_else(|| "default".parse(), Ok);
    let context = Context {
        name: add.name,
        server: add.server,
        plain_http: add.plain_http,
        tenant: add.tenant,
        project: project.map_err(|_| Failure::new(Exit::Usage, "the project has no name"))?,
        token,
        token_file,
    };
    // Address and token are refused now rather than at the first use.
    Client::new(&context, None)?;
    Ok(context)
}

fn list(config: &Config, common: &Common, shell: &mut Shell) -> Outcome<()> {
    let current = |c: &Context| config.current.as_deref().is_some_and(|current| current == c.name);
    if common.output != Format::Table {
        let items: Vec<_> = config
            .contexts
            .iter()
            .map(|c| {
                json!({"name": c.name, "current": current(c), "server": c.server, "tenant": c.tenant,
                    "project": c.project})
            })
            .collect();
        return render::value(shell, common.output, &items);
    }
    render::list(
        shell,
        common.output,
        &config.contexts,
        "no contexts",
        |contexts| {
            let mut table = Table::new(&["CURRENT", "NAME", "SERVER", "TENANT", "PROJECT"]);
            for c in contexts {
                let mark = if current(c) { "*" } else { "" };
                table.row([
                    mark.to_owned(),
                    c.name.clone(),
                    c.server.clone(),
                    c.tenant.to_string(),
                    c.project.to_string(),
                ]);
            }
            table
        },
    )
}
