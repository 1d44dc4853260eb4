{{/* What the pods of a component may reach, and who may reach them. */}}
{{- define "herald.networkPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "herald.name" . }}
  labels:
    {{- include "herald.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "herald.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- if has .component (include "herald.components" .root | splitList " ") }}
  ingress:
    {{- if has .component (list "consumer" "gateway") }}
    # Clients connect from any address, through any proxy.
    - ports:
        - port: http
        {{- if and .root.Values.rooms.enabled (eq .component "consumer") }}
        - port: rooms
        {{- end }}
    {{- end }}
    {{- include "herald.ingressToAdmin" .root | nindent 4 }}
    {{- with .root.Values.networkPolicy.extraIngress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  egress:
    {{- if eq .component "test" }}
    {{- include "herald.egressToNames" .root | nindent 4 }}
    - to:
        - podSelector:
            matchLabels:
              {{- include "herald.selector" (dict "root" .root "component" "consumer") | nindent 14 }}
      ports:
        - port: http
    {{- else }}
    {{- include "herald.egressToKafka" .root | nindent 4 }}
    {{- end }}
    {{- if has .component (list "consumer" "gateway") }}
    {{- with include "herald.egressToIssuer" .root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- if and (has .component (list "gateway" "projector")) (include "herald.hasDatabase" .root) }}
    {{- include "herald.egressToDatabase" .root | nindent 4 }}
    {{- end }}
    {{- with .root.Values.networkPolicy.extraEgress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Egress of a pod that uses Kafka: DNS and the brokers. */}}
{{- define "herald.egressToKafka" -}}
{{ include "herald.egressToNames" . }}
{{- $ports := list }}
{{- range splitList "," .Values.kafka.bootstrapServers }}
{{- $ports = append $ports (splitList ":" . | last | trim) }}
{{- end }}
- to:
    {{- range include "herald.kafkaNamespaces" . | splitList " " | compact }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ . | quote }}
    {{- end }}
    {{- range .Values.kafka.cidrs }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  ports:
    {{- range uniq $ports }}
    - port: {{ . }}
    {{- end }}
{{- end }}

{{- define "herald.egressToDatabase" -}}
- to:
    {{- with .Values.database.namespace }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ . | quote }}
    {{- end }}
    {{- range .Values.database.cidrs }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  ports:
    - port: {{ .Values.database.port }}
{{- end }}

{{/* To the issuer of tokens; empty if its keys are not fetched. */}}
{{- define "herald.egressToIssuer" -}}
{{- with .Values.tokens }}
{{- if .keysUrl }}
{{- $inUrl := regexFind "^https://([^][:/?]+|\\[[^]]+\\]):[0-9]+" .keysUrl | splitList ":" | last }}
- ports:
    - port: {{ .keysPort | default $inUrl | default 443 | int }}
  {{- if .keysCidrs }}
  to:
    {{- range .keysCidrs }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.egressToNames" -}}
# To any address: the cluster's DNS, or a cache on the node.
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
    # OpenShift's DNS, behind a Service with port 53.
    - port: 5353
      protocol: UDP
    - port: 5353
      protocol: TCP
{{- end }}

{{/* Prometheus may scrape the metrics. The kubelet's probes pass anyway. */}}
{{- define "herald.ingressToAdmin" -}}
- from:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .Values.monitoring.namespace | quote }}
  ports:
    - port: admin
{{- end }}
