//! The files that `-f` names, with their texts, sizes capped before anything is read whole.

use crate::{
    args::Files,
    failure::{Exit, Failure, Outcome},
    shell::Shell,
};
use roadstead_contract::documents::{MAX_FILE, MAX_SET, Name, Parsed, Problem, Source, parse_files};
use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

/// Most files of one call.
const MAX_FILES: usize = 1_000;
/// Deepest folder below one that is named.
const MAX_DEPTH: usize = 16;

/// Reads and checks everything that is named.
///
/// # Errors
/// A file is not there or too large, there is no document, or documents are refused (every problem is a line).
pub(crate) fn documents(files: &Files, project: &Name, shell: &mut Shell) -> Outcome<Vec<Parsed>> {
    let texts = texts(files, shell)?;
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let parsed = parse_files(&sources, project).map_err(|problems| refused(&problems))?;
    if parsed.is_empty() {
        let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Failure::new(
            Exit::Invalid,
            format!("there is no document in {}", names.join(", ")),
        ));
    }
    Ok(parsed)
}

/// Documents that do not hold, one line for each problem.
pub(crate) fn refused(problems: &[Problem]) -> Failure {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    Failure::new(Exit::Invalid, format!("{count}; nothing was written"))
        .details(problems.iter().map(ToString::to_string))
        .next("correct the documents; `roadstead explain KIND.FIELD` says what a field expects")
}

fn texts(files: &Files, shell: &mut Shell) -> Outcome<Vec<(String, String)>> {
    let mut texts = Vec::new();
    let mut total = 0;
    for named in &files.files {
        if named.as_os_str() == "-" {
            let text = shell
                .input
                .all(MAX_FILE)
                .map_err(|error| unreadable(Path::new("-"), &error))?;
            total += text.len();
            texts.push(("-".to_owned(), text));
            continue;
        }
        for path in below(named, files.recursive)? {
            let text = read(&path)?;
            total += text.len();
            texts.push((path.display().to_string(), text));
            if texts.len() > MAX_FILES || total > MAX_SET {
                let message = format!("at most {MAX_FILES} files with {MAX_SET} bytes together");
                return Err(Failure::new(Exit::Invalid, message).next("apply them in several calls"));
            }
        }
    }
    if texts.is_empty() {
        let message = if files.files.is_empty() {
            "no file is named"
        } else {
            "the folders have no .yaml, .yml or .json file"
        };
        return Err(Failure::new(Exit::Usage, message).next("roadstead apply -f FILE|FOLDER|-"));
    }
    Ok(texts)
}

/// A file itself, or the documents' files of a folder by name.
fn below(named: &Path, recursive: bool) -> Outcome<Vec<PathBuf>> {
    let metadata = std::fs::metadata(named).map_err(|error| unreadable(named, &error))?;
    if !metadata.is_dir() {
        return Ok(vec![named.to_owned()]);
    }
    let mut found = Vec::new();
    walk(named, recursive, 0, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, recursive: bool, depth: usize, found: &mut Vec<PathBuf>) -> Outcome<()> {
    let failed = |error: std::io::Error| unreadable(folder, &error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Links to folders are not followed: they may lead in circles.
        if kind.is_dir() && recursive && depth < MAX_DEPTH {
            walk(&path, recursive, depth + 1, found)?;
        } else if !kind.is_dir() && is_document(&path) && found.len() <= MAX_FILES {
            found.push(path);
        }
    }
    Ok(())
}

fn is_document(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["yaml", "yml", "json"]
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

fn read(path: &Path) -> Outcome<String> {
    let failed = |error: std::io::Error| unreadable(path, &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_FILE).unwrap_or(u64::MAX) + 1;
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    String::from_utf8(bytes).map_err(|_| {
        Failure::new(
            Exit::Invalid,
            format!("{}: expected text in UTF-8, found other bytes", path.display()),
        )
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    let name = path.display();
    match error.kind() {
        ErrorKind::FileTooLarge => Failure::new(
            Exit::Invalid,
            format!("{name}: expected at most {MAX_FILE} bytes in one file, found more"),
        ),
        ErrorKind::InvalidData => Failure::new(
            Exit::Invalid,
            format!("{name}: expected text in UTF-8, found other bytes"),
        ),
        ErrorKind::NotFound => Failure::new(Exit::Usage, format!("{name} does not exist")),
        _ => Failure::new(Exit::Failed, format!("{name} cannot be read: {error}")),
    }
}
