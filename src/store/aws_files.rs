//! What the AWS command line keeps in its files: keys, region and endpoint of a profile.

use super::error::StoreError;

/// The files of the AWS command line, and the profile that is meant.
#[derive(Debug, Clone, Default)]
pub struct AwsFiles {
    /// The text of `~/.aws/credentials`.
    pub credentials: Option<String>,
    /// The text of `~/.aws/config`.
    pub config: Option<String>,
    /// The name of the profile: `AWS_PROFILE`, or none for `default`.
    pub profile: Option<String>,
}

/// The profile that is meant if none is named.
const DEFAULT: &str = "default";

/// The keys that are read, and what object_store calls them.
const KEYS: [(&str, &str); 5] = [
    ("aws_access_key_id", "aws_access_key_id"),
    ("aws_secret_access_key", "aws_secret_access_key"),
    ("aws_session_token", "aws_session_token"),
    ("region", "aws_region"),
    ("endpoint_url", "aws_endpoint_url"),
];

/// How a profile may get its keys that weld does not know.
const OTHER_WAYS: [&str; 4] = [
    "sso_session",
    "sso_start_url",
    "credential_process",
    "role_arn",
];

/// The options of the profile, by the names of environment variables in lower case. Those of `credentials` come first.
///
/// # Errors
/// A profile is named that is not there, or one that gets its keys from somewhere else.
pub fn aws_options(files: &AwsFiles) -> Result<Vec<(String, String)>, StoreError> {
    let name = files.profile.as_deref().unwrap_or(DEFAULT);
    let in_config = match name {
        DEFAULT => vec![DEFAULT.to_owned(), format!("profile {DEFAULT}")],
        name => vec![format!("profile {name}")],
    };
    let credentials = section(files.credentials.as_deref(), &[name.to_owned()]);
    let config = section(files.config.as_deref(), &in_config);
    if files.profile.is_some() && credentials.is_none() && config.is_none() {
        return Err(StoreError::NoProfile {
            name: name.to_owned(),
        });
    }
    let values: Vec<(&str, &str)> = [credentials, config]
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    let value = |key: &str| {
        values
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| *value)
    };
    if value("aws_access_key_id").is_none()
        && let Some(way) = OTHER_WAYS.into_iter().find(|way| value(way).is_some())
    {
        return Err(StoreError::OtherCredentials {
            profile: name.to_owned(),
            way,
        });
    }
    let options = KEYS
        .into_iter()
        .filter_map(|(key, option)| Some((option.to_owned(), value(key)?.to_owned())));
    Ok(options.collect())
}

/// The keys and values of a section, if the file has it. Nested ones, which are indented, are left out.
fn section<'f>(file: Option<&'f str>, names: &[String]) -> Option<Vec<(&'f str, &'f str)>> {
    let mut found = None;
    let mut within = false;
    for line in file?.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            within = names.iter().any(|wanted| wanted == name.trim());
            if within {
                found.get_or_insert_with(Vec::new);
            }
        } else if within
            && !is_nested
            && let Some((key, value)) = line.split_once('=')
            && !value.trim().is_empty()
        {
            found
                .get_or_insert_with(Vec::new)
                .push((key.trim(), value.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = A\naws_secret_access_key=B=\n\n# one more\n[work]\n\
                               aws_access_key_id=C\naws_secret_access_key=D\naws_session_token=E\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile work]\nregion=us-west-2\nendpoint_url=http://localhost\n\
                          s3 =\n  max_concurrent_requests = 20\n[profile sso]\nsso_session=x\n[sso-session x]\nregion=q\n";

    fn options(profile: Option<&str>) -> Result<Vec<(String, String)>, StoreError> {
        aws_options(&AwsFiles {
            credentials: Some(CREDENTIALS.to_owned()),
            config: Some(CONFIG.to_owned()),
            profile: profile.map(str::to_owned),
        })
    }

    #[test]
    fn a_profile_is_read_as_the_command_line_reads_it() {
        let of = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        assert_eq!(
            options(None).unwrap(),
            of(&[
                ("aws_access_key_id", "A"),
                ("aws_secret_access_key", "B="),
                ("aws_region", "eu-west-1"),
            ])
        );
        assert_eq!(
            options(Some("work")).unwrap(),
            of(&[
                ("aws_access_key_id", "C"),
                ("aws_secret_access_key", "D"),
                ("aws_session_token", "E"),
                ("aws_region", "us-west-2"),
                ("aws_endpoint_url", "http://localhost"),
            ])
        );
        assert_eq!(aws_options(&AwsFiles::default()).unwrap(), []);
    }

    #[test]
    fn a_profile_that_cannot_be_used_is_refused() {
        assert!(matches!(
            options(Some("none")),
            Err(StoreError::NoProfile { .. })
        ));
        let other = options(Some("sso"));
        assert!(matches!(
            other,
            Err(StoreError::OtherCredentials {
                way: "sso_session",
                ..
            })
        ));
    }
}
