-- SPDX-License-Identifier: Apache-2.0
-- Sends what scrd_fast has made on to the PACS, by C-STORE; everything else stays.
function OnStoredInstance(instanceId, tags, metadata)
  if tags['Manufacturer'] == 'scrd_fast' then
    SendToModality(instanceId, 'pacs')
  end
end
