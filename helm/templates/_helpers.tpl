{{/* Names and labels. Templates for a component take a dict: "root" is the chart's root context, "component" its name. */}}

{{- define "herald.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- /* Leaves room for "-producer", the hash of a Job, and the pod's own suffix within 63 characters. */ -}}
{{- if gt (len $name) 40 }}{{ $name = printf "%s-%s" ($name | trunc 31 | trimAll "-.") (sha256sum $name | trunc 8) }}{{ end -}}
{{- $name -}}
{{- end }}

{{- define "herald.name" -}}
{{ include "herald.fullname" .root }}-{{ .component }}
{{- end }}

{{/* Selects the pods of a component. It must never change, since a Deployment's selector is immutable. */}}
{{- define "herald.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The labels of a pod, without the chart's version: otherwise a new chart would restart every pod. */}}
{{- define "herald.podLabels" -}}
{{ include "herald.selector" . }}
app.kubernetes.io/part-of: herald
{{- end }}

{{- define "herald.labels" -}}
{{ include "herald.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of the resources that Prometheus selects; those of the values override the chart's own. */}}
{{- define "herald.monitoringLabels" -}}
{{- $labels := include "herald.labels" (dict "root" . "component" "monitoring") | fromYaml -}}
{{ mergeOverwrite $labels .Values.monitoring.labels | toYaml }}
{{- end }}

{{/* The components that run, separated by spaces, in the order of the flow. "foods" is a producer that feeds the counts. */}}
{{- define "herald.components" -}}
producer{{ if .Values.counts.feed.enabled }} foods{{ end }}{{ if .Values.gateway.enabled }} gateway{{ end }} consumer{{ if .Values.projector.enabled }} projector{{ end }}
{{- end }}

{{/* The key in the values of the service that a component is. */}}
{{- define "herald.service" -}}
{{ ternary "producer" .component (eq .component "foods") }}
{{- end }}

{{/* The image of a component, from the values of its service. */}}
{{- define "herald.image" -}}
{{- $image := (index .root.Values (include "herald.service" .)).image -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
{{- end }}
