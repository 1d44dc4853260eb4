{{/* Names and labels. Templates for a component take a dict: "root" is the chart's root context, "component" its name. */}}

{{- define "herald.fullname" -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- $name := .Values.fullnameOverride | default .Release.Name -}}
{{- if not (or .Values.fullnameOverride (contains $chart $name)) }}{{ $name = printf "%s-%s" $name $chart }}{{ end -}}
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

{{/* Whether the Prometheus Operator scrapes the pods. */}}
{{- define "herald.isScraped" -}}
{{- if or .Values.monitoring.podMonitor .Values.monitoring.serviceMonitor }}true{{ end -}}
{{- end }}

{{/* The components that run, separated by spaces, in the order of the flow. "foods" is a producer that feeds the counts. */}}
{{- define "herald.components" -}}
producer{{ if .Values.counts.feed.enabled }} foods{{ end }}{{ if .Values.gateway.enabled }} gateway{{ end }} consumer{{ if .Values.projector.enabled }} projector{{ end }}
{{- end }}

{{/* The key in the values of the service that a component runs: the Job of topics is a producer, and the test a consumer. */}}
{{- define "herald.service" -}}
{{ get (dict "foods" "producer" "topic" "producer" "test" "consumer") .component | default .component }}
{{- end }}

{{/* The image of a component, from the values of its service. */}}
{{- define "herald.image" -}}
{{- $image := (index .root.Values (include "herald.service" .)).image -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest | quote }}
{{- else -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
{{- end -}}
{{- end }}

{{/* The name of a Service, of a component, or of another use such as "rooms": that of the values, or else one of the release's own. */}}
{{- define "herald.serviceName" -}}
{{- $own := include "herald.name" . | replace "." "-" -}}
{{- /* A Service's name begins with a letter. */}}
{{- if not (regexMatch "^[a-z]" $own) }}{{ $own = printf "herald-%s" $own | trunc 63 }}{{ end -}}
{{ ((index .root.Values .component).service).name | default $own }}
{{- end }}

{{/* The name of the pods' ServiceAccount; empty means the namespace's default. */}}
{{- define "herald.serviceAccountName" -}}
{{- $account := .Values.serviceAccount | default dict -}}
{{ $account.name | default (ternary (include "herald.fullname" .) "" (default false $account.create)) }}
{{- end }}
