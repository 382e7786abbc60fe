//! What a call is about, read from its path and query.

use super::ObjectKey;

/// A kind, an object or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The kind, in the plural: `pods`. Groups and versions are not told apart.
    pub plural: String,
    /// The namespace, if one is named.
    pub namespace: Option<String>,
    /// The object, if one is named.
    pub name: Option<String>,
    /// `status`, say.
    pub subresource: Option<String>,
    /// For a watch: the version after which it begins.
    pub watch_after: Option<u64>,
}

impl Target {
    /// Reads `/api/v1/namespaces/shop/pods/a/status?watch=true`, and whatever is less than that.
    #[must_use]
    pub fn parse(path_and_query: &str) -> Target {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let mut parts = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
        // `/api/v1` or `/apis/<group>/<version>`.
        let skipped = if parts.next().as_deref() == Some("apis") { 2 } else { 1 };
        let parts: Vec<String> = parts.skip(skipped).collect();
        let (namespace, rest) = match &parts[..] {
            [first, namespace, rest @ ..] if first == "namespaces" && !rest.is_empty() => {
                (Some(namespace.clone()), rest)
            }
            all => (None, all),
        };
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
        };
        let after = value("resourceVersion").and_then(|version| version.parse().ok());
        Target {
            plural: rest.first().cloned().unwrap_or_default(),
            namespace,
            name: rest.get(1).cloned(),
            subresource: rest.get(2).cloned(),
            watch_after: (value("watch") == Some("true")).then(|| after.unwrap_or(0)),
        }
    }

    pub(super) fn key(&self, name: &str) -> ObjectKey {
        let namespace = self.namespace.clone().unwrap_or_default();
        (self.plural.clone(), namespace, name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_kind_namespace_object_and_part() {
        let some = |text: &str| Some(text.to_owned());
        let whole = Target::parse("/api/v1/namespaces/shop/pods/a/status?&fieldManager=x");
        let expected = Target {
            plural: "pods".to_owned(),
            namespace: some("shop"),
            name: some("a"),
            subresource: some("status"),
            watch_after: None,
        };
        assert_eq!(whole, expected);
        let namespace = Target::parse("/api/v1/namespaces/shop");
        assert_eq!((&*namespace.plural, namespace.name), ("namespaces", some("shop")));
        let group = Target::parse("/apis/discovery.k8s.io/v1/endpointslices?");
        assert_eq!((&*group.plural, group.namespace, group.name), ("endpointslices", None, None));
    }

    #[test]
    fn a_watch_says_where_it_begins() {
        let watch = |query: &str| Target::parse(&format!("/api/v1/pods?{query}")).watch_after;
        assert_eq!(watch("watch=true&resourceVersion=7"), Some(7));
        assert_eq!(watch("watch=true"), Some(0));
        assert_eq!(watch("resourceVersion=7"), None);
    }
}
