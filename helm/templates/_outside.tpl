{{/* The hosts by which clients come in. All take the chart's root context, and return JSON. */}}

{{/* Of the consumer; takes the values of the Ingress or the route. */}}
{{- define "herald.hosts" -}}
{{ prepend (.hosts | default list) .host | compact | uniq | toJson }}
{{- end }}

{{/* The paths that lead to the consumer. */}}
{{- define "herald.paths" -}}
{{ .paths | default (list "/") | toJson }}
{{- end }}

{{/* Whether the gateway can be reached from outside: where it has hosts or paths of its own. */}}
{{- define "herald.isExposed" -}}
{{- $expose := .Values.gateway.expose | default dict -}}
{{- if and .Values.gateway.enabled (or $expose.hosts $expose.paths) }}true{{ end -}}
{{- end }}

{{/* The paths that lead to the gateway. */}}
{{- define "herald.gatewayPaths" -}}
{{ (.Values.gateway.expose).paths | default (list "/") | toJson }}
{{- end }}
