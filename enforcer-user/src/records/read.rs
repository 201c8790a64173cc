//! Reading files of flow records line by line, however large they are.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use policy::RecordError;

/// Records that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("cannot read {}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of it.
    #[error("{}:{line}: {source}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        source: RecordError,
    },
}

/// Hands every line to `take`, of one file after the other, `-` being standard input. A last line without its end is being
/// written this moment and left out.
///
/// # Errors
/// The first line that `take` refuses, or what cannot be read.
pub fn lines(files: &[PathBuf], mut take: impl FnMut(&str) -> Result<(), RecordError>) -> Result<(), ReadError> {
    for file in files {
        let failed = |source| ReadError::File { file: file.clone(), source };
        if file == Path::new("-") {
            each(file, &mut io::stdin().lock(), &mut take)?;
        } else {
            let opened = File::open(file).map_err(failed)?;
            each(file, &mut BufReader::with_capacity(1 << 18, opened), &mut take)?;
        }
    }
    Ok(())
}

fn each(
    file: &Path,
    input: &mut dyn BufRead,
    take: &mut impl FnMut(&str) -> Result<(), RecordError>,
) -> Result<(), ReadError> {
    let mut text = String::new();
    let mut line = 0;
    loop {
        text.clear();
        line += 1;
        input.read_line(&mut text).map_err(|source| ReadError::File { file: file.to_owned(), source })?;
        let Some(whole) = text.strip_suffix('\n') else { return Ok(()) };
        if !whole.is_empty() {
            take(whole).map_err(|source| ReadError::Line { file: file.to_owned(), line, source })?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_named_and_unfinished_ones_left_out() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("flows.jsonl");
        let read = |text: &[u8]| {
            std::fs::write(&file, text).expect("written");
            let mut taken = 0;
            let result = lines(std::slice::from_ref(&file), |line| {
                taken += 1;
                if line == "bad" { Err(RecordError::Version(9)) } else { Ok(()) }
            });
            (taken, result.map_err(|error| error.to_string()))
        };
        assert_eq!(read(b"a\n\nb\nhalf a li"), (2, Ok(())));
        let (taken, error) = read(b"a\nbad\nb\n");
        assert!(taken == 2 && error.is_err_and(|error| error.contains("flows.jsonl:2: a flow record of version 9")));
        assert!(read(b"\xff\xfe\n").1.is_err_and(|error| error.contains("UTF-8")));
        let missing = [directory.path().join("none")];
        assert!(lines(&missing, |_| Ok(())).is_err_and(|error| error.to_string().contains("cannot read")));
    }
}
