//! A copy of the policy that was last in force, for an agent that starts when the files are broken.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use crate::config::PolicyText;

/// Where the copy lies: beside the admin socket, where nobody but root writes and which a reboot empties, as it does the
/// kernel.
fn file(socket: &Path) -> PathBuf {
    let mut file = socket.as_os_str().to_owned();
    file.push(".policy");
    file.into()
}

/// Keeps a copy; one that cannot be written is missed only if the policy breaks, so that is a warning.
pub(super) fn save(socket: &Path, texts: &[PolicyText]) {
    let file = file(socket);
    if let Err(error) = try_save(&file, texts) {
        tracing::warn!(%error, file = %file.display(), "cannot keep a copy of the policy");
    }
}

fn try_save(file: &Path, texts: &[PolicyText]) -> std::io::Result<()> {
    let texts: Vec<_> = texts.iter().map(|text| (&text.file, &text.text)).collect();
    let body = serde_json::to_vec(&texts)?;
    let fresh = file.with_extension("policy.new");
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    out.write_all(checksum(&body).as_bytes())?;
    out.write_all(b"\n")?;
    out.write_all(&body)?;
    drop(out);
    fs::rename(&fresh, file)
}

/// The copy.
///
/// # Errors
/// If there is none, or it is damaged.
pub(super) fn read(socket: &Path) -> anyhow::Result<Vec<PolicyText>> {
    let file = file(socket);
    let bytes = fs::read(&file).with_context(|| format!("the copy of the policy in {}", file.display()))?;
    let (sum, body) = bytes.split_at_checked(64).with_context(|| format!("{} is cut off", file.display()))?;
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    ensure!(checksum(body).as_bytes() == sum, "{} is damaged: its checksum is wrong", file.display());
    let texts: Vec<(String, String)> = serde_json::from_slice(body)?;
    Ok(texts.into_iter().map(|(file, text)| PolicyText { file, text }).collect())
}

/// SHA-256, hexadecimal.
fn checksum(body: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, body);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_comes_back_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("enforcer.sock");
        assert!(read(&socket).unwrap_err().to_string().contains("enforcer.sock.policy"));
        let texts = [("a.yaml", "rules: []\n"), ("b.yaml", "")]
            .map(|(file, text)| PolicyText { file: file.into(), text: text.into() });
        save(&socket, &texts);
        assert_eq!(read(&socket).unwrap(), texts);
        let whole = fs::read(file(&socket)).unwrap();
        for (at, what) in [(3, "checksum"), (whole.len() - 4, "body")] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(file(&socket), bytes).unwrap();
            assert!(read(&socket).unwrap_err().to_string().contains("damaged"), "{what}");
        }
        fs::write(file(&socket), &whole[..40]).unwrap();
        assert!(read(&socket).unwrap_err().to_string().contains("cut off"));
    }
}
