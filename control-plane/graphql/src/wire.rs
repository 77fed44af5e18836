//! Requests and answers as they travel: GraphQL-over-HTTP (the GraphQL Foundation's draft), shared with the WebSocket.
//!
//! Our own thin layer, because the library's integration runs mutations over GET, takes batches of any length and
//! does not negotiate media types.

use crate::limits::{Exceeded, Limits};
use async_graphql::{
    Response, ServerError, Value as GraphqlValue, Variables,
    parser::{
        parse_query,
        types::{ExecutableDocument, OperationType},
    },
};
use http::{HeaderMap, StatusCode, header};
use roadstead_domain::Error;
use serde_json::{Map, Value, json};

/// Media types of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    /// `application/json`: 200 for every well-formed request.
    Json,
    /// `application/graphql-response+json`: 400 where nothing was executed.
    GraphqlResponse,
}

impl Media {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::GraphqlResponse => "application/graphql-response+json; charset=utf-8",
        }
    }

    /// What the caller accepts; `None` where it is neither. Without `Accept` it is JSON, as clients before 2025 expect.
    pub(crate) fn accepted(headers: &HeaderMap) -> Option<Self> {
        if !headers.contains_key(header::ACCEPT) {
            return Some(Self::Json);
        }
        let mut best: Option<(u16, Self)> = None;
        let values = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|v| v.to_str().ok());
        for range in values.flat_map(|v| v.split(',')) {
            let (name, quality) = media_range(range);
            let media = match name.as_str() {
                "application/graphql-response+json" => Self::GraphqlResponse,
                "application/json" | "application/*" | "*/*" => Self::Json,
                _ => continue,
            };
            if quality > best.map_or(0, |(best, _)| best) {
                best = Some((quality, media));
            }
        }
        best.map(|(_, media)| media)
    }
}

/// Name and weight in thousandths of one entry of `Accept` (RFC 9110 §12.5.1).
fn media_range(text: &str) -> (String, u16) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let weight = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
    let quality = weight.map_or(1.0, |q| q.parse::<f64>().unwrap_or(0.0).clamp(0.0, 1.0));
    (name, (quality * 1000.0) as u16)
}

/// Whether the body is JSON in UTF-8.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let mut parts = value.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|name| name.eq_ignore_ascii_case("application/json"));
    let utf8 = parts.all(|p| {
        let (name, value) = p.split_once('=').unwrap_or((p, ""));
        !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    json && utf8
}

/// One operation to run, parsed and within the limits that need no schema.
#[derive(Debug)]
pub(crate) struct Operation {
    query: String,
    document: ExecutableDocument,
    name: Option<String>,
    variables: Variables,
}

/// Why a body holds no operation.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// Not the JSON that the protocol asks for: 400 whatever the media type.
    Parameters(String),
    /// GraphQL that does not parse or exceeds a limit.
    Document(Vec<ServerError>),
}

/// A request error with a code.
pub(crate) fn request_error(code: &'static str, message: impl Into<String>) -> ServerError {
    let mut error = ServerError::new(message, None);
    let extensions = error.extensions.get_or_insert_with(Default::default);
    extensions.set("code", GraphqlValue::from(code));
    error
}

impl From<Exceeded> for Unreadable {
    fn from(exceeded: Exceeded) -> Self {
        Self::Document(vec![request_error("LIMIT", exceeded.to_string())])
    }
}

/// The parameters of one operation, types checked.
struct Parameters {
    query: String,
    name: Option<String>,
    variables: Variables,
}

fn parameters(value: Value) -> Result<Parameters, Unreadable> {
    let wrong = |message: &str| Unreadable::Parameters(message.to_owned());
    let Value::Object(mut object) = value else {
        return Err(wrong(
            "expected an object with `query`, `variables` and `operationName`",
        ));
    };
    let Some(Value::String(query)) = object.remove("query") else {
        return Err(wrong("`query`: expected a text"));
    };
    let name = match object.remove("operationName") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name),
        Some(_) => return Err(wrong("`operationName`: expected a text or null")),
    };
    if !matches!(
        object.remove("extensions"),
        None | Some(Value::Null | Value::Object(_))
    ) {
        return Err(wrong("`extensions`: expected an object or null"));
    }
    let variables = match object.remove("variables") {
        None | Some(Value::Null) => Variables::default(),
        Some(Value::Object(variables)) => Variables::from_json(Value::Object(variables)),
        Some(_) => return Err(wrong("`variables`: expected an object or null")),
    };
    Ok(Parameters {
        query,
        name,
        variables,
    })
}

/// The operations of one request's JSON, and whether they came as a batch.
///
/// # Errors
/// The first thing that is wrong; nothing of a batch runs then.
pub(crate) fn read(body: Value, limits: &Limits) -> Result<(Vec<Operation>, bool), Unreadable> {
    let (values, batch) = match body {
        Value::Array(values) => (values, true),
        value => (vec![value], false),
    };
    if values.is_empty() {
        return Err(Unreadable::Parameters("the batch is empty".to_owned()));
    }
    if values.len() > limits.batch {
        let allowed = limits.batch;
        return Err(Unreadable::from(Exceeded {
            what: "operations in a batch",
            allowed,
        }));
    }
    let parameters = values
        .into_iter()
        .map(parameters)
        .collect::<Result<Vec<_>, _>>()?;
    limits.check_text(parameters.iter().map(|p| p.query.as_str()))?;
    let mut operations = Vec::with_capacity(parameters.len());
    for Parameters {
        query,
        name,
        variables,
    } in parameters
    {
        let document = parse_query(&query).map_err(|e| Unreadable::Document(vec![e.into()]))?;
        operations.push(Operation {
            query,
            document,
            name,
            variables,
        });
    }
    limits.check_aliases(operations.iter().map(|o| &o.document))?;
    limits.check_expanded(operations.iter().map(|o| (&o.document, &o.variables)))?;
    Ok((operations, batch))
}

impl Operation {
    /// What kind of operation would run; `None` where the name does not decide it (the schema says so in its words).
    pub(crate) fn kind(&self) -> Option<OperationType> {
        let mut found = self
            .document
            .operations
            .iter()
            .filter(|(name, _)| match &self.name {
                Some(wanted) => name.is_some_and(|n| n.as_str() == wanted),
                None => true,
            });
        let kind = found.next().map(|(_, operation)| operation.node.ty);
        if found.next().is_some() { None } else { kind }
    }

    pub(crate) fn into_request(self) -> async_graphql::Request {
        let mut request = async_graphql::Request::new(self.query).variables(self.variables);
        request.operation_name = self.name;
        request.set_parsed_query(self.document);
        request
    }
}

/// One answer, ready to be written.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Map<String, Value>,
    /// Nothing was executed.
    refused: bool,
}

impl Answer {
    /// Of what the schema answered. Faults are logged here, once; the caller gets the code and the request id.
    pub(crate) fn new(response: Response, request_id: &str) -> Self {
        let refused = !response.errors.is_empty()
            && response.data == GraphqlValue::Null
            && response.errors.iter().all(|e| e.path.is_empty());
        let mut body = Map::new();
        if !refused {
            body.insert("data".to_owned(), json_of(response.data));
        }
        if !response.errors.is_empty() {
            let errors = response.errors.iter().map(|e| error_of(e, request_id)).collect();
            body.insert("errors".to_owned(), Value::Array(errors));
        }
        if !response.extensions.is_empty() {
            let extensions = response
                .extensions
                .into_iter()
                .map(|(k, v)| (k, json_of(v)))
                .collect();
            body.insert("extensions".to_owned(), Value::Object(extensions));
        }
        Self { body, refused }
    }

    /// Of a request that did not get as far as the schema.
    pub(crate) fn refusal(errors: Vec<ServerError>, request_id: &str) -> Self {
        Self::new(Response::from_errors(errors), request_id)
    }

    pub(crate) fn into_json(self) -> Value {
        Value::Object(self.body)
    }

    /// The errors, where nothing was executed.
    pub(crate) fn into_refusal(mut self) -> Result<Value, Value> {
        match self.body.remove("errors") {
            Some(errors) if self.refused => Err(errors),
            errors => {
                self.body.extend(errors.map(|e| ("errors".to_owned(), e)));
                Ok(Value::Object(self.body))
            }
        }
    }

    /// Something needed was away: trying again later may help.
    pub(crate) fn is_unavailable(&self) -> bool {
        let errors = self.body.get("errors").and_then(Value::as_array);
        let codes = errors.into_iter().flatten().map(|e| &e["extensions"]["code"]);
        codes.into_iter().any(|code| code == "UNAVAILABLE")
    }

    pub(crate) fn status(&self, media: Media) -> StatusCode {
        if self.refused && media == Media::GraphqlResponse {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::OK
        }
    }
}

fn json_of(value: GraphqlValue) -> Value {
    value.into_json().unwrap_or_default()
}

/// One error with `extensions {code, requestId}` and nothing else.
fn error_of(error: &ServerError, request_id: &str) -> Value {
    if let Some(source) = error.source::<Error>()
        && source.is_fault()
    {
        tracing::error!(
            code = source.code(),
            detail = %Chain(source),
            field = %path_of(error),
            "a resolver failed"
        );
    }
    let code = error.extensions.as_ref().and_then(|e| e.get("code"));
    let code = code.map_or_else(|| Value::from("INVALID"), |c| json_of(c.clone()));
    let mut object = Map::new();
    object.insert("message".to_owned(), Value::from(error.message.as_str()));
    if !error.locations.is_empty() {
        object.insert("locations".to_owned(), json!(error.locations));
    }
    if !error.path.is_empty() {
        object.insert("path".to_owned(), json!(error.path));
    }
    object.insert(
        "extensions".to_owned(),
        json!({"code": code, "requestId": request_id}),
    );
    Value::Object(object)
}

fn path_of(error: &ServerError) -> String {
    serde_json::to_string(&error.path).unwrap_or_default()
}

/// An error with all that caused it.
struct Chain<'a>(&'a Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut cause: Option<&dyn std::error::Error> = Some(self.0);
        let mut first = true;
        while let Some(error) = cause {
            if !first {
                f.write_str(": ")?;
            }
            write!(f, "{error}")?;
            (first, cause) = (false, error.source());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn accept(value: &'static str) -> Option<Media> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(value));
        Media::accepted(&headers)
    }

    #[test]
    fn the_answers_media_type_is_negotiated() {
        assert_eq!(Media::accepted(&HeaderMap::new()), Some(Media::Json));
        assert_eq!(accept("*/*"), Some(Media::Json));
        assert_eq!(
            accept("application/graphql-response+json"),
            Some(Media::GraphqlResponse)
        );
        assert_eq!(
            accept("application/graphql-response+json, application/json;q=0.9"),
            Some(Media::GraphqlResponse)
        );
        assert_eq!(
            accept("application/json, application/graphql-response+json;q=0.5"),
            Some(Media::Json)
        );
        assert_eq!(accept("text/html"), None);
        assert_eq!(accept("application/json;q=0"), None);
    }

    #[test]
    fn s17_only_json_is_a_body() {
        let content = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            is_json(&headers)
        };
        assert!(content("application/json"));
        assert!(content("Application/JSON; charset=UTF-8"));
        for bad in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=utf-16",
            "application/graphql",
            "application/jsonp",
        ] {
            assert!(!content(bad), "{bad}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    fn refused(body: Value) -> String {
        match read(body, &Limits::default()).unwrap_err() {
            Unreadable::Parameters(message) => message,
            Unreadable::Document(errors) => errors[0].message.clone(),
        }
    }

    #[test]
    fn parameters_of_a_wrong_type_are_refused() {
        for (body, word) in [
            (json!(3), "object"),
            (json!({}), "query"),
            (json!({"query": 3}), "query"),
            (json!({"query": "{a}", "variables": []}), "variables"),
            (json!({"query": "{a}", "operationName": 3}), "operationName"),
            (json!({"query": "{a}", "extensions": "x"}), "extensions"),
            (json!([]), "empty"),
        ] {
            assert!(refused(body.clone()).contains(word), "{body}");
        }
        read(
            json!({"query": "{a}", "variables": null, "operationName": null, "extensions": null}),
            &Limits::default(),
        )
        .unwrap();
    }

    #[test]
    fn s20_a_batch_has_at_most_ten_operations() {
        let batch = |n: usize| Value::Array(vec![json!({"query": "{a}"}); n]);
        assert!(read(batch(10), &Limits::default()).unwrap().1);
        assert!(refused(batch(11)).contains("batch"));
    }

    #[test]
    fn the_operation_that_would_run_is_known() {
        let kind = |body: Value| read(body, &Limits::default()).unwrap().0[0].kind();
        let two = "query A { a } mutation B { b }";
        assert_eq!(kind(json!({"query": "{ a }"})), Some(OperationType::Query));
        assert_eq!(
            kind(json!({"query": two, "operationName": "B"})),
            Some(OperationType::Mutation)
        );
        assert_eq!(kind(json!({"query": two})), None);
    }

    #[test]
    fn s24_errors_carry_code_and_request_id_and_nothing_else() {
        let mut error = ServerError::new("no", None);
        error
            .extensions
            .get_or_insert_with(Default::default)
            .set("secret", "x");
        let answer = Answer::refusal(vec![error], "r1");
        assert_eq!(answer.status(Media::Json), 200);
        assert_eq!(answer.status(Media::GraphqlResponse), 400);
        let json = answer.into_json();
        assert_eq!(
            json["errors"][0]["extensions"],
            json!({"code": "INVALID", "requestId": "r1"})
        );
        assert!(json.get("data").is_none());
    }
}
