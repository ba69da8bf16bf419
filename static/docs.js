// Renders the OpenAPI document.
SwaggerUIBundle({
  // Above /static/VERSION/, whatever path prefix a proxy serves Sluice under.
  url: new URL("../../openapi.json", document.currentScript.src).href,
  dom_id: "#api",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  persistAuthorization: false,
});
