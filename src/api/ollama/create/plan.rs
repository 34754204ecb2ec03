//! Plan of a creation, worked out before anything is stored.

use std::{sync::Arc, time::SystemTime};

use serde_json::Value;

use super::CreateRequest;
use crate::{
    api::{ApiHandler, error::ApiError, listing::find_listed, model::failure_of, options::RequestOptions},
    go::{
        decode::entries_of,
        template::{GoTemplate, TemplateError},
    },
    hub::HfName,
    inference::{Failure, Message, ModelCard, ThinkMode},
    provider::{AliasSettings, AliasStore, CallContext, ModelAlias, NameOrigin, PlainName, Provider, PullStream},
};

/// Quantizations that Ollama creates.
const QUANTIZATIONS: [&str; 5] = ["F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0"];

/// Planned creation: the request, its base model, and the stores that it reads and writes.
pub(super) struct CreationPlan {
    call: CallContext,
    provider: Arc<dyn Provider>,
    aliases: AliasStore,
    name: PlainName,
    /// Canonical hf: name of the base model.
    model: String,
    /// Name of the base model as the client wrote it.
    pub(super) from: String,
    /// Alias that the new one is derived from.
    base: Option<Arc<ModelAlias>>,
    /// Name of `from` in listings, if that is a plain name.
    parent: Option<String>,
    request: CreateRequest,
}

impl CreationPlan {
    /// Plans a creation from `base`, which is an hf: name or the name of an alias.
    pub(super) fn new(
        api: &ApiHandler,
        call: &CallContext,
        name: PlainName,
        base: &str,
        origin: NameOrigin,
        mut request: CreateRequest,
    ) -> Result<Self, ApiError> {
        if !request.renderer.is_empty() || !request.parser.is_empty() {
            return Err(ApiError::bad_request(
                "renderer and parser are parts of Ollama; leave them out: the chat template of an hf: model says how it is asked and read",
            ));
        }
        let aliases = api.registry.aliases().clone();
        let made = if origin == NameOrigin::Made {
            aliases.get(base)
        } else {
            None
        };
        let model = made.as_ref().map_or(base, |alias| alias.model.as_str());
        let from = std::mem::take(&mut request.from);
        Ok(Self {
            call: call.clone(),
            provider: api.registry.hub(),
            model: with_adapters(model, &request.adapters)?,
            parent: PlainName::parse(&from)
                .filter(|_| origin.is_plain())
                .map(|name| name.to_string()),
            aliases,
            name,
            from,
            base: made,
            request,
        })
    }

    /// Returns true if the model's files are on this machine. The check begins no download: that is done later, with
    /// progress.
    pub(super) async fn is_there(&self) -> Result<bool, ApiError> {
        let cards = self.provider.list(&self.call).await;
        match find_listed(cards.iter(), &self.model) {
            // Models of the configuration are listed before they are downloaded, with size 0.
            Some(card) => Ok(card.size_bytes > 0),
            None if self.call.config.hub.auto_pull => Ok(false),
            None => match self.provider.card(&self.call, &self.model).await {
                Ok(_) => Ok(true),
                Err(Failure::NotFound(_)) => Ok(false),
                Err(failure) => Err(failure_of(failure, &self.from)),
            },
        }
    }

    pub(super) async fn pull(&self) -> Result<PullStream, ApiError> {
        let pull = self.provider.pull(&self.call, &self.model).await;
        pull.map_err(|failure| failure_of(failure, &self.from))
    }

    /// Makes the checks that need no model, so that a bad request does not download one first.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        self.options().map(drop)
    }

    /// Stores the alias, and returns the statuses that Ollama sends for these steps.
    pub(super) async fn keep(&self) -> Result<Vec<String>, ApiError> {
        let card = self.provider.card(&self.call, &self.model).await;
        let card = card.map_err(|failure| failure_of(failure, &self.from))?;
        check_quantization(&self.request.quantize, &card)?;
        let settings = self.settings().await?;
        let name = self.name.to_string();
        // Ollama reports a layer as existing if any model has it. Here layers are not shared, so only the base and the
        // alias that is replaced are compared.
        let known: Vec<_> = [self.base.clone(), self.aliases.get(&name)]
            .into_iter()
            .flatten()
            .flat_map(|alias| alias.settings.layers())
            .collect();
        let mut statuses = vec![format!("using existing layer sha256:{}", card.digest)];
        statuses.extend(settings.layers().into_iter().map(|layer| {
            let verb = match known.contains(&layer) {
                true => "using existing",
                false => "creating new",
            };
            format!("{verb} layer sha256:{}", layer.digest)
        }));
        let alias = ModelAlias {
            name,
            parent_model: self.parent.clone().unwrap_or_else(|| card.name.clone()),
            model: card.name,
            modified_at: SystemTime::now(),
            settings,
        };
        self.aliases.put(alias).await.map_err(ApiError::from)?;
        statuses.extend(["writing manifest".to_owned(), "success".to_owned()]);
        Ok(statuses)
    }

    /// Merges the settings of the base and of the request. As in Ollama, licenses add up, parameters are replaced one
    /// by one, and messages as a whole.
    async fn settings(&self) -> Result<AliasSettings, ApiError> {
        let request = &self.request;
        let options = self.options()?;
        let mut settings = self
            .base
            .as_ref()
            .map_or_else(AliasSettings::default, |base| base.settings.clone());
        if !request.system.is_empty() {
            settings.system.clone_from(&request.system);
        }
        if !request.template.is_empty() && !self.is_the_models_own(&request.template).await? {
            check_template(&request.template)?;
            settings.template.clone_from(&request.template);
        }
        settings.license.extend(request.license.iter().cloned());
        if !request.messages.is_empty() {
            settings.messages.clone_from(&request.messages);
        }
        settings.parameters = self.parameters();
        settings.sampling = options.sampling;
        settings.load = options.load;
        Ok(settings)
    }

    fn parameters(&self) -> serde_json::Map<String, Value> {
        let mut parameters = self
            .base
            .as_ref()
            .map_or_else(Default::default, |base| base.settings.parameters.clone());
        parameters.extend(self.request.parameters.clone());
        parameters.sort_keys();
        parameters
    }

    /// Decodes the parameters, so that a wrong one is reported at the creation and not at the first request.
    fn options(&self) -> Result<RequestOptions, ApiError> {
        let text = Value::Object(self.parameters()).to_string();
        let entries = entries_of(text.as_bytes(), "map[string]interface {}")?;
        RequestOptions::read(entries).map_err(|error| ApiError::bad_request(error.message))
    }

    /// Returns true for the template of the base model itself. A Modelfile that was printed for an hf: model has it,
    /// and it is Jinja, which this field is not.
    async fn is_the_models_own(&self, template: &str) -> Result<bool, ApiError> {
        let details = self.provider.show(&self.call, &self.model, false).await;
        let details = details.map_err(|failure| failure_of(failure, &self.from))?;
        Ok(details.template.trim() == template.trim())
    }
}

/// Returns the model's name with adapters, all of which must be names of the Hub.
fn with_adapters(model: &str, adapters: &[(String, String)]) -> Result<String, ApiError> {
    if adapters.is_empty() {
        return Ok(model.to_owned());
    }
    let mut name = model.to_owned();
    for (key, value) in adapters {
        let of_the_hub = [key, value]
            .into_iter()
            .find_map(|text| text.strip_prefix("hf:").or_else(|| text.strip_prefix('+')));
        let Some(adapter) = of_the_hub else {
            return Err(ApiError::bad_request(format!(
                "the adapter {key} is a file; an hf: model takes adapters of the Hub: FROM {model}+ORG/ADAPTER"
            )));
        };
        name.push('+');
        name.push_str(adapter);
    }
    match HfName::parse(&name) {
        Ok(name) => Ok(name.to_string()),
        Err(error) => Err(ApiError::bad_request(error.to_string())),
    }
}

/// Fails if another quantization is asked for: files of the Hub are used as they are.
fn check_quantization(wanted: &str, card: &ModelCard) -> Result<(), ApiError> {
    let has = &card.facts.quantization;
    let wanted = wanted.to_ascii_uppercase();
    if wanted.is_empty() || wanted.eq_ignore_ascii_case(has) {
        return Ok(());
    }
    if !QUANTIZATIONS.contains(&wanted.as_str()) {
        return Err(ApiError::internal(format!(
            "unsupported quantization type {wanted} - supported types are {}",
            QUANTIZATIONS.join(", ")
        )));
    }
    Err(ApiError::bad_request(format!(
        "{} is {has}, and files of the Hub are not quantized anew; choose {wanted} by name: FROM hf:ORG/REPO:{wanted}",
        card.name
    )))
}

/// Fails for a template that would fail the first request.
fn check_template(source: &str) -> Result<(), ApiError> {
    let conversation = [
        Message::text("system", "s"),
        Message::text("user", "u"),
        Message::text("assistant", "a"),
        Message::text("user", "u"),
    ];
    let tried = GoTemplate::parse(source).and_then(|template| {
        // A template for fill in the middle only makes sense with a suffix.
        let is_for_gaps = template.uses("suffix") && !template.uses("messages");
        match is_for_gaps {
            true => template.render_infill("p", "s", ThinkMode::Unset).map(drop),
            false => template.render(&conversation, ThinkMode::Unset).map(drop),
        }
    });
    tried.map_err(|error| match error {
        TemplateError::Syntax(_) | TemplateError::Execution(_) | TemplateError::TooLong => {
            ApiError::bad_request(format!("template error: {error}"))
        }
        TemplateError::Unsupported(_) => ApiError::bad_request(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::fake::card;

    #[test]
    fn files_of_the_hub_are_not_quantized() {
        let card = card("hf:o/r:Q4_K_M");
        assert!(check_quantization("", &card).is_ok() && check_quantization("q4_k_m", &card).is_ok());
        let error = check_quantization("q9", &card).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.message.as_str()),
            (
                500,
                "unsupported quantization type Q9 - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"
            )
        );
        let error = check_quantization("q8_0", &card).unwrap_err();
        assert!(error.status == 400 && error.message.contains(":Q8_0"), "{error}");
    }

    #[test]
    fn adapters_are_names_of_the_hub_or_refused() {
        let pair = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        assert_eq!(with_adapters("hf:o/r:Q4", &[]).unwrap(), "hf:o/r:Q4");
        for adapters in [pair("hf:a/b", ""), pair("x", "+a/b"), pair("adapter", "hf:a/b")] {
            assert_eq!(with_adapters("hf:o/r:Q4", &adapters).unwrap(), "hf:o/r:Q4+a/b");
        }
        for (adapters, part) in [
            (pair("a.gguf", "sha256:1"), "the adapter a.gguf is a file"),
            (pair("hf:a", ""), "invalid model name"),
        ] {
            let error = with_adapters("hf:o/r:Q4", &adapters).unwrap_err();
            assert!(error.status == 400 && error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn a_template_that_would_fail_is_refused_with_its_reason() {
        for source in [
            "{{ .System }}{{ .Prompt }}",
            "{{ range .Messages }}{{ .Content }}{{ end }}",
            "<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}",
        ] {
            assert_eq!(check_template(source), Ok(()), "{source}");
        }
        for (source, expected) in [
            ("{{ .Prompt", "template error: template: :1: unclosed action"),
            (
                "{{ range .Messages }}{{ .Nope }}{{ end }}",
                "template error: template: can't evaluate field Nope",
            ),
            (
                "{{ html .Prompt }}",
                "template: function \"html\" is not understood for hf: models; use the model's own template, or raw",
            ),
        ] {
            let error = check_template(source).unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (400, expected));
        }
    }
}
