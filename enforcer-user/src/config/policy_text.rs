//! Finding and reading policy files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::error_text;

/// A policy file as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText {
    /// Its path.
    pub file: String,
    /// What it says.
    pub text: String,
}

/// A policy file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot read it: {}", .path.display(), error_text(.error))]
pub struct PolicyReadError {
    /// The file or directory.
    pub path: PathBuf,
    /// What the system says.
    pub error: io::Error,
}

impl PolicyText {
    /// Reads files, and the `*.yaml` and `*.yml` of directories in order of their names. Hidden ones are left out: they are
    /// what editors and configuration management leave behind.
    ///
    /// # Errors
    /// For the first that cannot be read: half a policy would be another policy.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>, PolicyReadError> {
        let mut texts = Vec::new();
        for path in paths {
            if path.is_dir() {
                for file in files_of(path)? {
                    texts.push(Self::read(&file)?);
                }
            } else {
                texts.push(Self::read(path)?);
            }
        }
        Ok(texts)
    }

    fn read(path: &Path) -> Result<Self, PolicyReadError> {
        let text = fs::read_to_string(path).map_err(|error| PolicyReadError { path: path.into(), error })?;
        Ok(Self { file: path.display().to_string(), text })
    }
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>, PolicyReadError> {
    let failed = |error| PolicyReadError { path: directory.into(), error };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_policy = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_policy && !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_in_order_and_other_files_left_out() {
        let dir = tempfile::tempdir().expect("directory");
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "c.yaml~", "README"] {
            fs::write(dir.path().join(name), name).expect("written");
        }
        let texts = PolicyText::read_all(&[dir.path().into(), dir.path().join("README")]).expect("read");
        assert_eq!(texts.iter().map(|text| text.text.as_str()).collect::<Vec<_>>(), ["a.yml", "b.yaml", "README"]);
    }

    #[test]
    fn a_missing_file_is_an_error_not_an_empty_policy() {
        let error = PolicyText::read_all(&["/nonexistent/p.yaml".into()]).expect_err("missing");
        assert_eq!(error.to_string(), "/nonexistent/p.yaml: cannot read it: no such file or directory");
    }
}
