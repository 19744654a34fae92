-- Health of a DistillationJob for Argo CD, from its conditions alone; no standard library is needed.
local conditions = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    conditions[condition.type] = condition
  end
end

local function holds(name)
  return conditions[name] ~= nil and conditions[name].status == "True"
end

local function health(status, name)
  local message = conditions[name].reason
  if conditions[name].message ~= nil and conditions[name].message ~= "" then
    message = message .. ": " .. conditions[name].message
  end
  return { status = status, message = message }
end

if obj.metadata.deletionTimestamp ~= nil then
  return { status = "Progressing", message = "The job is being deleted" }
end
if obj.status == nil or obj.status.observedGeneration == nil then
  return { status = "Progressing", message = "Waiting for the operator to look at the job" }
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "Waiting for the operator to look at the newest spec" }
end
if holds("Stalled") then
  return health("Degraded", "Stalled")
end
if holds("Failed") then
  return health("Degraded", "Failed")
end
if holds("Suspended") then
  return health("Suspended", "Suspended")
end
if holds("Ready") then
  return health("Healthy", "Ready")
end
if holds("Reconciling") then
  return health("Progressing", "Reconciling")
end
if conditions["Ready"] ~= nil then
  return health("Progressing", "Ready")
end
return { status = "Progressing", message = "Waiting for the operator to look at the job" }
